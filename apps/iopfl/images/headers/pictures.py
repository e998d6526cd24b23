"""PNG, JPEG, TIFF and BMP: all whole in themselves."""

from __future__ import annotations

import struct
from typing import BinaryIO

from iopfl.images.headers.header import HeaderError, ImageHeader, check, check_sizes

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""By color type; a palette becomes colors."""

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""JPEG's markers of a frame header (ITU-T T.81, table B.1)."""
_MAX_SCANS = 200
"""Of a JPEG: progressive ones have some ten."""
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers that nothing follows."""
_MAX_SEGMENTS = 10_000
_MAX_FILL = 1000

_TIFF_BYTES = {1: 1, 3: 2, 4: 4, 16: 8}
"""Of the types that sizes and counts come in: BYTE, SHORT, LONG, LONG8."""
_MAX_TAGS = 10_000


def read_png(file: BinaryIO) -> ImageHeader:
    """Read the header of a PNG (its specification, 11.2.1).

    Raises:
        HeaderError: it is none, or says what cannot be.
    """
    head = file.read(33)
    check(len(head) == 33 and head.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"), "it has no header of one")
    width, height, depth, color = struct.unpack(">IIBB", head[16:26])
    check(color in _PNG_CHANNELS, f"its colors are of type {color}")
    return ImageHeader("PNG", check_sizes((width, height)), _PNG_CHANNELS[color], max(1, depth // 8))


def read_jpeg(file: BinaryIO) -> ImageHeader:
    """Read the frame header of a JPEG (ITU-T T.81, B.2.2).

    Raises:
        HeaderError: it is none, or has no frame.
    """
    check(file.read(2) == b"\xff\xd8", "it has no header of one")
    for _ in range(_MAX_SEGMENTS):
        marker = _read_marker(file)
        if marker in _BARE:
            continue
        (length,) = struct.unpack(">H", _read(file, 2))
        check(length >= 2, "it has a segment of no length")
        if marker in _FRAMES:
            precision, height, width, components = struct.unpack(">BHHB", _read(file, 6))
            check(_count_scans(file) <= _MAX_SCANS, f"it has more than {_MAX_SCANS} scans")
            return ImageHeader("JPEG", check_sizes((width, height)), components, -(-precision // 8))
        check(marker not in (0xD9, 0xDA), "it has no frame")
        file.seek(length - 2, 1)
    raise HeaderError("it has no frame")


def _count_scans(file: BinaryIO) -> int:
    """Starts of scans in what follows; each goes over the whole picture, and an empty one is a few bytes."""
    count, last = 0, b""
    while count <= _MAX_SCANS and (piece := file.read(2**20)):
        count += (last + piece).count(b"\xff\xda")
        last = piece[-1:] if piece.endswith(b"\xff") else b""
    return count


def _read_marker(file: BinaryIO) -> int:
    """A byte after 0xFF; some programs fill up with more of these."""
    check(_read(file, 1) == b"\xff", "it is damaged")
    for _ in range(_MAX_FILL):
        byte = _read(file, 1)
        if byte != b"\xff":
            return byte[0]
    raise HeaderError("it is damaged")


def read_tiff(file: BinaryIO) -> ImageHeader:
    """Read the first directory of a TIFF (TIFF 6.0, section 2), or BigTIFF.

    Raises:
        HeaderError: it is none, or says what cannot be.
    """
    head = _read(file, 4)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        raise HeaderError("it has no header of one")
    (version,) = struct.unpack(f"{order}H", head[2:])
    check(version in (42, 43), "it has no header of one")
    is_big = version == 43
    if is_big:
        check(_read(file, 4) == struct.pack(f"{order}HH", 8, 0), "it has no header of one")
    offset_format, count_format = (f"{order}Q", f"{order}Q") if is_big else (f"{order}I", f"{order}H")
    (start,) = struct.unpack(offset_format, _read(file, struct.calcsize(offset_format)))
    file.seek(start)
    (count,) = struct.unpack(count_format, _read(file, struct.calcsize(count_format)))
    check(count <= _MAX_TAGS, f"it has {count} tags")
    tags: dict[int, int] = {}
    for _ in range(count):
        tag, kind = struct.unpack(f"{order}HH", _read(file, 4))
        (values,) = struct.unpack(offset_format, _read(file, struct.calcsize(offset_format)))
        held = _read(file, 8 if is_big else 4)
        if values and kind in _TIFF_BYTES and _TIFF_BYTES[kind] * min(values, 2**16) <= len(held):
            tags[tag] = int.from_bytes(held[: _TIFF_BYTES[kind]], "little" if order == "<" else "big")
    check(256 in tags and 257 in tags, "it does not say its size")
    samples, bits = max(1, tags.get(277, 1)), tags.get(258, 8)  # of several samples, bits lie elsewhere
    return ImageHeader("TIFF", check_sizes((tags[256], tags[257])), samples, max(1, bits // 8))


def read_bmp(file: BinaryIO) -> ImageHeader:
    """Read the header of a BMP.

    Raises:
        HeaderError: it is none, or says what cannot be.
    """
    check(_read(file, 2) == b"BM", "it has no header of one")
    file.seek(14)
    (size,) = struct.unpack("<I", _read(file, 4))
    if size == 12:
        width, height, _, bits = struct.unpack("<HHHH", _read(file, 8))
    else:
        check(size >= 40, "it has no header of one")
        width, height, _, bits = struct.unpack("<iiHH", _read(file, 12))
    return ImageHeader("BMP", check_sizes((width, abs(height))), 1 if bits == 1 else 3 if bits <= 24 else 4, 1)


def _read(file: BinaryIO, count: int) -> bytes:
    """So many bytes.

    Raises:
        HeaderError: there are fewer.
    """
    content = file.read(count)
    check(len(content) == count, "it is cut short")
    return content
