"""Whether all programs find the same in a DICOM file: each attribute once, in order, and nothing that is unclear."""

from __future__ import annotations

import mmap
import struct

from iopfl.base.errors import SeriesError

_MAX_ELEMENTS = 2**20
_MAX_DEPTH = 64
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""Value representations with a length of 32 bits (PS3.5, 7.1.2)."""
_NESTED = (b"SQ", b"OB", b"OW")
"""Those that may have items in place of a length."""
_TAG, _SHORT_LENGTH, _LENGTH = struct.Struct("<HH"), struct.Struct("<H"), struct.Struct("<I")


def check_order(data: bytes | mmap.mmap, start: int, end: int, *, is_implicit: bool) -> None:
    """Check that an instance has each attribute once, in ascending order (PS3.5, 7.1), and is whole.

    Of an attribute that is there twice, some programs take the first and others the last. Values are not read.

    Args:
        data: holds it.
        start: where its file meta information begins, after `DICM`.
        end: where the instance ends.
        is_implicit: whether its transfer syntax is Implicit VR Little Endian; else it is explicit, little endian.

    Raises:
        SeriesError: it is otherwise.
    """
    at, last, open_ends, has_meta_ended = start, -1, list[int](), False
    meta_end = start + 12 + _LENGTH.unpack_from(data, start + 8)[0]
    for _ in range(_MAX_ELEMENTS):
        if at == end and has_meta_ended and not open_ends:
            return
        if at + 8 > end:
            break
        group, element = _TAG.unpack_from(data, at)
        tag = group << 16 | element
        if group == 0xFFFE:
            length = _LENGTH.unpack_from(data, at + 4)[0]
            at += 8
            if tag == _ITEM and open_ends and open_ends[-1] == _SEQUENCE_END:
                if length == _UNDEFINED:
                    open_ends.append(_ITEM_END)
                else:
                    at += length
            elif open_ends and open_ends.pop() == tag and length == 0:
                continue
            else:
                break
            continue
        if open_ends and open_ends[-1] == _SEQUENCE_END:
            break
        if not open_ends:
            if not has_meta_ended and (group != 2 or at >= meta_end):
                has_meta_ended = True
                if at != meta_end or group == 2:
                    break
            if tag <= last:
                break
            last = tag
        try:
            at, length, is_nested = _read_length(data, at, is_implicit=is_implicit and has_meta_ended)
        except (ValueError, struct.error):
            break
        if length != _UNDEFINED:
            at += length
        elif is_nested and len(open_ends) < _MAX_DEPTH:
            open_ends.append(_SEQUENCE_END)
        else:
            break
    raise SeriesError(
        "expected an instance of whole attributes, each once and in order (PS3.5, 7.1), this has others: export it anew"
    )


def _read_length(data: bytes | mmap.mmap, at: int, *, is_implicit: bool) -> tuple[int, int, bool]:
    """Where an element's value begins, its length in bytes, and whether it may have items."""
    if is_implicit:
        return at + 8, _LENGTH.unpack_from(data, at + 4)[0], True
    kind = data[at + 4 : at + 6]
    if kind in _LONG:
        return at + 12, _LENGTH.unpack_from(data, at + 8)[0], kind in _NESTED
    if not (kind.isalpha() and kind.isupper()):
        raise ValueError(kind)
    return at + 8, _SHORT_LENGTH.unpack_from(data, at + 6)[0], False
