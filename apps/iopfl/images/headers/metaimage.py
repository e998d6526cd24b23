"""MetaImage in one file (https://itk.org/Wiki/MetaIO/Documentation)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import BinaryIO

from iopfl.images.headers.header import HeaderError, ImageHeader, check, check_sizes, read_integer

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
"""Four bytes are a long of the format, whatever a machine's own: MetaIO, `MET_ValueTypeSize`."""
_YES = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}

_MAX_LINE = 2**16
_MAX_LINES = 10_000


@dataclass(frozen=True)
class MetaImageHeader(ImageHeader):
    """With all that reading the data takes.

    Attributes:
        dtype: the type of a value, as numpy writes it.
        is_packed: whether the data are a zlib stream.
        start: byte at which they begin.
        spacing: the spacing of each axis, mm.
        directions: unit vector of each axis, in LPS.
        origin: the origin of the first voxel, mm in LPS.
        unit: in which lengths are given, if not in mm.
    """

    dtype: str
    is_packed: bool
    start: int
    spacing: tuple[float, ...]
    directions: tuple[tuple[float, ...], ...]
    origin: tuple[float, ...]
    unit: str


def read_metaimage(file: BinaryIO) -> MetaImageHeader:
    """Read the header of a MetaImage in one file.

    Raises:
        HeaderError: it is none, names another file, or says what cannot be.
    """
    fields = _read_fields(file)
    check(fields.get("ObjectType", "Image") == "Image", "it holds something else than an image")
    # Only what the format calls LOCAL follows in the same file: all else is a name, or a list of names.
    check(fields["ElementDataFile"].upper() == "LOCAL", "its data are in another file")
    check(fields.get("HeaderSize", "0") in ("0", "-1"), "it skips bytes before its data")
    check(_yes(fields, "BinaryData", "True"), "its data are text")
    for name in ("NDims", "DimSize", "ElementType"):
        check(name in fields, f"it does not say its {name}")
    count = read_integer(fields["NDims"])
    check(2 <= count <= 3, f"it has {count} axes")
    sizes = check_sizes([read_integer(size) for size in fields["DimSize"].split()])
    check(len(sizes) == count, f"it has {len(sizes)} sizes for {count} axes")
    kind = _TYPES.get(fields["ElementType"].upper().removesuffix("_ARRAY"))
    if kind is None:
        raise HeaderError("its values are of a type that is no plain number")
    (channels,) = check_sizes([read_integer(fields.get("ElementNumberOfChannels", "1"))])
    is_big = _yes(fields, "BinaryDataByteOrderMSB" if "BinaryDataByteOrderMSB" in fields else "ElementByteOrderMSB")
    matrix = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), count * count)
    rows = [tuple(matrix[axis * count : (axis + 1) * count]) for axis in range(count)]
    straight = [tuple(float(axis == other) for other in range(count)) for axis in range(count)]
    start, is_packed = file.tell(), _yes(fields, "CompressedData")
    if fields.get("HeaderSize") == "-1" and not is_packed:  # the data are the last bytes, wherever the header ends
        start = max(start, file.seek(0, 2) - math.prod(sizes) * channels * int(kind[1]))
        file.seek(start)
    return MetaImageHeader(
        format="MetaImage",
        shape=sizes,
        channels=channels,
        value_bytes=int(kind[1]),
        dtype=(">" if is_big else "<") + kind,
        is_packed=is_packed,
        start=start,
        spacing=_numbers(fields, ("ElementSpacing", "ElementSize"), count) or (1.0,) * count,
        directions=tuple(rows if matrix else straight),
        origin=_numbers(fields, ("Offset", "Position", "Origin"), count) or (0.0,) * count,
        unit=fields.get("DistanceUnits", "").lower(),
    )


def _read_fields(file: BinaryIO) -> dict[str, str]:
    """Fields by name, up to `ElementDataFile`, after which the data begin."""
    fields: dict[str, str] = {}
    for _ in range(_MAX_LINES):
        line = file.readline(_MAX_LINE)
        name, separator, value = line.decode("latin-1").partition("=")
        check(separator and line.endswith(b"\n"), "it has no header of one")
        name, value = name.strip(), value.strip()
        check(name not in fields, f"it says its {name[:20]} twice")
        fields[name] = value
        if name == "ElementDataFile":
            return fields
    raise HeaderError("its header does not end")


def _yes(fields: dict[str, str], name: str, default: str = "False") -> bool:
    value = fields.get(name, default).lower()
    check(value in _YES, f"its {name} is {value[:20]!r}")
    return _YES[value]


def _numbers(fields: dict[str, str], names: tuple[str, ...], count: int) -> tuple[float, ...]:
    """The numbers of the first of these fields that is there; none without one."""
    name = next((name for name in names if name in fields), None)
    if name is None:
        return ()
    numbers = tuple(float(word) for word in fields[name].split())
    check(len(numbers) == count, f"its {name} has {len(numbers)} numbers")
    return numbers
