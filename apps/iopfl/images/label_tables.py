"""Names of label values in a NIfTI: the table of labels that Connectome Workbench and TotalSegmentator write.

It is an extension of the header in XML, `<CaretExtension>` with `<Label Key="1" ...>name</Label>` for each value, under
Caret's code (30) or none (0).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import ParseError, fromstring

from iopfl.base.errors import SeriesError
from iopfl.images.files import open_nifti, telling
from iopfl.images.names import find_suffix

_START = b"<CaretExtension"
_UNNAMED = "???"
"""Workbench's name of what has none."""
_LARGEST, _LONGEST = 2**32, 400
"""Value, and characters of a name, that are taken from a file."""


def read_label_table(path: Path) -> dict[int, str]:
    """What a label's file says that its values are: value -> name; nothing of a file without a table.

    Args:
        path: the label's file, read before.

    Raises:
        SeriesError: there is a table that is none, or that names a value twice.
    """
    if find_suffix(path.name) not in (".nii", ".nii.gz"):
        return {}
    with telling(path, "NIfTI"):
        contents = [extension.content for extension in open_nifti(path).header.extensions]
    tables = [content for content in contents if _START in content]
    try:
        return _read(tables[0]) if tables else {}
    except (ParseError, ValueError, LookupError) as error:
        raise SeriesError(
            f"label {path.name}: expected a whole number and one name for each value in its table of labels, but the "
            "table in its header says something else; save it again"
        ) from error


def check_named(names: dict[int, str], values: Iterable[float], file: str) -> dict[int, str]:
    """The names, if each of some values has one.

    Raises:
        SeriesError: one has none.
    """
    unnamed = sorted(set(values) - names.keys())
    if unnamed:
        raise SeriesError(
            f"label {file}: holds the value {unnamed[0]:g}, which the table of labels in its header does not name; "
            "name it, or remove it"
        )
    return names


def _read(table: bytes) -> dict[int, str]:
    table = table.rstrip(b"\0 \n\r\t").lstrip()
    if b"<!DOCTYPE" in table.replace(b"\0", b""):  # no table has one, and entities could become any size
        raise ValueError("a document type")
    root = fromstring(table)
    volume = root.find("VolumeInformation")
    names: dict[int, str] = {}
    for label in (root if volume is None else volume).iter("Label"):
        value, name = int(label.attrib["Key"]), (label.text or "").strip()
        if abs(value) > _LARGEST or len(name) > _LONGEST or not name.isprintable():
            raise ValueError("no value of voxels, or no name that a message could repeat")
        if value and name not in ("", _UNNAMED) and names.setdefault(value, name) != name:
            raise ValueError("one value, two names")
    return names
