"""What a compressed frame says of its own size, read before a decoder allocates it.

Sources: ISO/IEC 15444-1 A.5.1 (JPEG 2000, SIZ), ISO/IEC 10918-1 B.2.2 (JPEG, SOF), ISO/IEC 14495-1 C.2.2 (JPEG-LS).
"""

from __future__ import annotations

import struct

from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from iopfl.base.errors import SeriesError

MAX_TILES = 4096
"""Of a JPEG 2000 frame: a decoder keeps some kilobytes for each, however small."""

_SIZ = b"\xff\x4f\xff\x51"  # start of codestream, image and tile size
_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def check_codestream(frame: bytes, syntax: str, rows: int, columns: int) -> None:
    """Check that a compressed frame is as large as its instance says.

    Args:
        frame: one frame's bytes.
        syntax: transfer syntax UID.
        rows: the number of rows of the instance.
        columns: the number of columns of the instance.

    Raises:
        SeriesError: another size, or no header.
    """
    if syntax in JPEG2000TransferSyntaxes:
        size = _find_jpeg_2000_size(frame)
    elif syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        size = _find_jpeg_size(frame)
    else:  # run lengths have no header; they expand at most 64 times
        return
    if size != (columns, rows):
        raise SeriesError(
            f"expected a compressed frame of {columns} x {rows} pixels, "
            f"given {'no header' if size is None else f'{size[0]} x {size[1]}'}; send it uncompressed"
        )


def _find_jpeg_2000_size(frame: bytes) -> tuple[int, int] | None:
    start = frame.find(_SIZ)
    if start < 0 or len(frame) < start + 40:
        return None
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", frame, start + 8)
    width, height = right - left, bottom - top
    tiles = -(-width // max(1, tile_width)) * -(-height // max(1, tile_height))
    if tiles > MAX_TILES:
        raise SeriesError(f"expected at most {MAX_TILES} tiles in a frame, given {tiles}; send it uncompressed")
    return width, height


def _find_jpeg_size(frame: bytes) -> tuple[int, int] | None:
    place = 2  # behind the start of image
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        length, _, height, width = struct.unpack_from(">HBHH", frame, place + 2)
        if marker in _FRAME_MARKERS:
            return width, height
        place += 2 + length
    return None
