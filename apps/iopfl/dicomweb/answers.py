"""What a DICOMweb server answers, in whichever form it chose, as data sets in DICOM JSON.

Asked for JSON (PS3.18 F), some answer in XML (PS3.19 A.1), each data set in a part of its own or all in one document,
give no media type or a wrong one, write tags in small letters, or null where there is nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element, fromstring

Item = dict[str, Any]
"""A data set in DICOM JSON: tag, eight capital hexadecimal digits -> `{"vr": ..., "Value": [...]}`."""

_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_BLANK = b" \t\r\n"
_WHOLE = ("IS", "SL", "SS", "SV", "UL", "US", "UV")
_DECIMAL = ("DS", "FD", "FL")
_NAMES = ("Alphabetic", "Ideographic", "Phonetic")
_NAME_PARTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")


def read_items(body: bytes) -> list[Item]:
    """The data sets of an answer; none of an empty one.

    Raises:
        ValueError: it is no DICOM.
    """
    body = body.removeprefix(b"\xef\xbb\xbf").strip(_BLANK)
    if not body:
        return []
    if body.startswith(b"--"):  # multipart: a boundary, and headers up to an empty line
        boundary = body.split(b"\n", 1)[0].strip()
        parts = [re.split(rb"\r?\n\r?\n", part, maxsplit=1) for part in body.split(boundary)[1:]]
        return [item for part in parts if len(part) == 2 for item in read_items(part[1])]
    if body.startswith(b"<"):
        return list(_read_xml(body))
    found = json.loads(body.decode(errors="replace"))
    return [_to_item(item) for item in (found if isinstance(found, list) else [found]) if item is not None]


def first_value(item: Mapping[str, Any], tag: str) -> Any:
    """The first value of an element; "" without any."""
    return next(iter(values_of(item, tag)), "")


def values_of(item: Mapping[str, Any], tag: str) -> list[Any]:
    """The values of an element that there are."""
    values = (item.get(tag) or {}).get("Value")
    return [value for value in (values if isinstance(values, list) else [values]) if value is not None]


def find_items(item: Mapping[str, Any], tag: str) -> list[Item]:
    """The items of a sequence."""
    return [_to_item(value) for value in values_of(item, tag)]


def _to_item(found: Any) -> Item:
    if not isinstance(found, dict) or not all(
        _TAG.fullmatch(tag) and isinstance(element, dict | None) for tag, element in found.items()
    ):
        raise ValueError("no data set in DICOM JSON")
    return {tag.upper(): _without_null(element) for tag, element in found.items() if element is not None}


def _without_null(element: dict[str, Any]) -> dict[str, Any]:
    """An element whose null for no values at all is left out."""
    return element if element.get("Value", ()) is not None else {"vr": element.get("vr", "UN")}


def _read_xml(body: bytes) -> Iterator[Item]:
    """Data sets of the Native DICOM Model, one in each document, or several within any element."""
    if b"<!DOCTYPE" in body.replace(b"\0", b""):  # nothing of DICOM has one, and entities could become any size
        raise ValueError("no data set in XML")
    root = fromstring(body)
    models = [root] if _kind(root) == "NativeDicomModel" else [e for e in root.iter() if _kind(e) == "NativeDicomModel"]
    if not models and (len(root) or _kind(root).lower() == "html"):
        raise ValueError("no data set in XML")
    yield from map(_to_json, models)


def _kind(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _children(element: Element, kind: str) -> list[Element]:
    return [child for child in element if _kind(child) == kind]


def _to_json(model: Element) -> Item:
    attributes = ((str(each.get("tag")).upper(), each) for each in _children(model, "DicomAttribute"))
    return {tag: _to_element(each) for tag, each in attributes if _TAG.fullmatch(tag)}


def _to_element(attribute: Element) -> dict[str, Any]:
    vr = str(attribute.get("vr"))
    for kind, key in (("BulkData", "BulkDataURI"), ("InlineBinary", "InlineBinary")):
        for child in _children(attribute, kind):
            return {"vr": vr, key: str(child.get("uri") or child.text or "")}
    if vr == "SQ":
        values: list[Any] = [_to_json(child) for child in _children(attribute, "Item")]
    elif vr == "PN":
        values = [_to_name(child) for child in _children(attribute, "PersonName")]
    else:
        values = [_to_value(child.text or "", vr) for child in _children(attribute, "Value")]
    return {"vr": vr, **({"Value": values} if values else {})}


def _to_value(text: str, vr: str) -> Any:
    if vr in _WHOLE or vr in _DECIMAL:
        return None if not text.strip() else int(text) if vr in _WHOLE else float(text)
    return text


def _to_name(person: Element) -> dict[str, str]:
    name = {}
    for kind in _NAMES:
        for group in _children(person, kind):
            parts = {_kind(part): part.text or "" for part in group}
            name[kind] = "^".join(parts.get(part, "") for part in _NAME_PARTS).rstrip("^")
    return name
