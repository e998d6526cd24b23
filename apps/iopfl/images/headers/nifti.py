"""NIfTI-1 and NIfTI-2 (https://nifti.nimh.nih.gov)."""

from __future__ import annotations

import gzip
import math
import struct
from typing import BinaryIO

from iopfl.images.headers.header import HeaderError, ImageHeader, check, check_sizes

_VALUE_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}
"""Of the data types that are numbers; complex numbers, long doubles and colors are none that a network takes."""

_MAX_EXTENSIONS = 2**26
"""Bytes between header and data: readers take them all into memory."""


def read_packed_nifti(file: BinaryIO) -> ImageHeader:
    """Read the header of a gzipped NIfTI.

    Raises:
        HeaderError: it is none.
    """
    check(file.read(2) == b"\x1f\x8b", "it is not gzipped")
    file.seek(0)
    with gzip.open(file) as unpacked:
        return read_nifti(unpacked)  # type: ignore[arg-type]  # a file in all that is used


def read_nifti(file: BinaryIO) -> ImageHeader:
    """Read the header of a NIfTI in one file.

    Raises:
        HeaderError: it is none, is one of a pair, or says what cannot be.
    """
    head = file.read(540)
    check(len(head) >= 348, "it is shorter than a header")
    order, is_second = _find_version(head)
    if is_second:
        check(len(head) == 540, "it is shorter than a header")
        magic, expected, pair = head[4:12], b"n+2\0\r\n\x1a\n", b"ni2"
        (kind,) = struct.unpack_from(f"{order}h", head, 12)
        dim = struct.unpack_from(f"{order}8q", head, 16)
        (start,) = struct.unpack_from(f"{order}q", head, 168)
        (intent,) = struct.unpack_from(f"{order}i", head, 504)
        # CIFTI-2, of which nibabel makes another class.
        check(not 3000 <= intent < 3100, "it holds values of a surface")
    else:
        magic, expected, pair = head[344:348], b"n+1\0", b"ni1"
        dim = struct.unpack_from(f"{order}8h", head, 40)
        (kind,) = struct.unpack_from(f"{order}h", head, 70)
        (start,) = struct.unpack_from(f"{order}f", head, 108)
    check(not magic.startswith(pair), "its data are in another file")
    check(magic == expected, "it has no header of one")
    check(1 <= dim[0] <= 7, f"it says that it has {dim[0]} axes")
    sizes = check_sizes(dim[1 : dim[0] + 1])
    check(kind in _VALUE_BYTES, f"its values are of type {kind}, which is no plain number")
    # Compared this way round, NaN is refused too.
    check(0 <= start <= _MAX_EXTENSIONS, f"it says that its data start at byte {start}")
    space = sizes[:3] if len(sizes) > 2 else (*sizes, 1)[:2]
    return ImageHeader("NIfTI", space, math.prod(sizes[3:]), _VALUE_BYTES[kind])


def _find_version(head: bytes) -> tuple[str, bool]:
    """Byte order, and whether it is NIfTI-2, by the header's size."""
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", head)
        if size in (348, 540):
            return order, size == 540
    raise HeaderError("it has no header of one")
