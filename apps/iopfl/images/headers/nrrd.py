"""NRRD (https://teem.sourceforge.net/nrrd/format.html)."""

from __future__ import annotations

import bz2
import math
import re
import zlib
from typing import BinaryIO

from iopfl.images.headers.header import HeaderError, ImageHeader, check, check_sizes, read_integer

_VALUE_BYTES = {
    1: "signed char|int8|int8_t|uchar|unsigned char|uint8|uint8_t",
    2: "short|short int|signed short|signed short int|int16|int16_t|"
    "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    4: "int|signed int|int32|int32_t|uint|unsigned int|uint32|uint32_t|float",
    8: "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t|"
    "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t|double",
}
_BYTES_OF_TYPE = {name: size for size, names in _VALUE_BYTES.items() for name in names.split("|")}

_PACKED = {"gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_PLAIN = ("raw", "ascii", "text", "txt")

_MAX_LINE = 2**20
_MAX_LINES = 10_000
_CHUNK = 2**20


def read_nrrd(file: BinaryIO) -> ImageHeader:
    """Read the header of an NRRD, and see that its data are in the file, as many as it says.

    Raises:
        HeaderError: it is none, names another file, or says what cannot be.
    """
    check(re.fullmatch(rb"NRRD000[1-5]\s*", file.readline(32)), "it has no header of one")
    fields = _read_fields(file)
    check("datafile" not in fields, "its data are in another file")
    for name in ("lineskip", "byteskip"):
        check(fields.get(name, "0") in ("0", "-1"), f"it skips {name[:4]}s before its data")
    for name in ("type", "dimension", "sizes", "encoding"):
        check(name in fields, f"it does not say its {name}")
    kind = fields["type"].lower()
    check(kind in _BYTES_OF_TYPE, f"its values are of type {kind[:20]!r}, which is no plain number")
    sizes = check_sizes([read_integer(size) for size in fields["sizes"].split()])
    check(fields["dimension"] == str(len(sizes)), f"it says that it has {fields['dimension'][:20]} axes")
    # An axis without a direction in space is not one of space: it holds the values of a voxel.
    directions = re.findall(r"none|\([^)]*\)", fields.get("spacedirections", "").lower())
    is_space = [word != "none" for word in directions] if len(directions) == len(sizes) else [True] * len(sizes)
    space = [size for size, holds in zip(sizes, is_space, strict=True) if holds]
    check(2 <= len(space) <= 3, f"it has {len(space)} axes in space")
    header = ImageHeader("NRRD", tuple(space), math.prod(sizes) // math.prod(space), _BYTES_OF_TYPE[kind])
    encoding = fields["encoding"].lower()
    check(encoding in _PACKED or encoding in _PLAIN, f"it is encoded as {encoding[:20]!r}")
    if encoding in _PACKED:
        _check_size(file, _PACKED[encoding], header.stored_bytes)
    return header


def _read_fields(file: BinaryIO) -> dict[str, str]:
    """Fields by name, without spaces in it, as the readers of this format take it too."""
    fields: dict[str, str] = {}
    for _ in range(_MAX_LINES):
        raw = file.readline(_MAX_LINE)
        check(len(raw) < _MAX_LINE, "a line of its header does not end")
        line = raw.decode("ascii", "ignore").rstrip()
        if not line:
            return fields
        if line.startswith("#"):
            continue
        name, separator, value = line.partition(":")
        check(separator, "its header holds something else than fields")
        name = "".join(name.lower().split())
        check(name not in fields, f"it says its {name[:20]} twice")
        fields[name] = value.removeprefix("=").strip()
    raise HeaderError("its header does not end")


def _check_size(file: BinaryIO, packing: str, expected: int) -> None:
    """Unpack what follows, at most a bit more than is expected."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16) if packing == "gzip" else bz2.BZ2Decompressor()
    found = 0
    while found <= expected and not unpacker.eof:
        if isinstance(unpacker, bz2.BZ2Decompressor):
            packed = file.read(_CHUNK) if unpacker.needs_input else b""
        else:
            packed = unpacker.unconsumed_tail or file.read(_CHUNK)
        unpacked = unpacker.decompress(packed, _CHUNK)
        if not packed and not unpacked:
            break
        found += len(unpacked)
    check(found >= expected, f"its data end after {found} of {expected} bytes")
    check(found == expected, f"its data are more than the {expected} bytes that it says")
    check(unpacker.eof, "its checksum is missing")  # which is compared where the data end
