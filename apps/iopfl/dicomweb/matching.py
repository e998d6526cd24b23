"""Whether what a search found matches what was searched for (PS3.4 C.2.2.2): some servers ignore parts of a query."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

from iopfl.dicomweb.answers import values_of

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_MOMENTS = ("DA", "DT", "TM")


def find_tag(keyword: str) -> str:
    """An attribute's tag, from its keyword or itself; "" of what is no attribute."""
    if _TAG.fullmatch(keyword):
        return keyword.upper()
    tag = tag_for_keyword(keyword)
    return "" if tag is None else f"{tag:08X}"


def find_mismatch(item: Mapping[str, Any], filters: Mapping[str, Any]) -> str:
    """The first keyword whose value in a data set is another than was searched for; "" without any.

    What the data set does not say is taken at the search's word.

    Args:
        item: in DICOM JSON.
        filters: keyword or tag -> value; a list, range or wildcards as in a query.
    """
    for keyword, wanted in filters.items():
        tag = find_tag(keyword)
        values = values_of(item, tag) if tag and str(wanted) else []
        if values and not any(_matches(value, str(wanted), tag) for value in values):
            return keyword
    return ""


def _matches(value: Any, wanted: str, tag: str) -> bool:
    try:
        kind = dictionary_VR(tag)
    except KeyError:  # private
        kind = ""
    if isinstance(value, dict):  # a person's name, of which a search may give the beginning
        names = [str(name) for name in value.values() if name]
        return not names or any(_is_like(name, f"{wanted.rstrip('^*')}*") for name in names)
    text = str(value).strip()
    if kind in _MOMENTS and "-" in wanted:
        first, last = wanted.split("-", 1)
        return first <= text and (not last or text[: len(last)] <= last)
    choices = re.split(r"[\\,]", wanted) if kind in ("UI", "CS") else [wanted]
    return any(_is_like(text, choice) for choice in choices)


def _is_like(text: str, wanted: str) -> bool:
    pattern = "".join({"*": ".*", "?": "."}.get(letter) or re.escape(letter) for letter in wanted.strip().casefold())
    return re.fullmatch(pattern, text.strip().casefold(), re.DOTALL) is not None
