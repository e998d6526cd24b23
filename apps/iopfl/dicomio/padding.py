"""Pixels that a scanner only filled up with: around a round field of view, beyond a border (PS3.3 C.7.5.1.1.2).

Pixel Padding Value is a stored value, before rescale and inversion, and with Pixel Padding Range Limit a range of
them. Headers say it signed where the pixels are not, or the reverse, so bits are compared rather than numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from pydicom import Dataset

from iopfl.dicomio.frames import find_group

_BITS = ("PixelPaddingValue", "PixelPaddingRangeLimit")
_NUMBERS = (
    ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
)
_CONVERTED = ("UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence")
"""Where a legacy converted instance keeps what its slices said (PS3.3 C.7.6.16.2.25, C.7.6.16.2.26)."""


def has_padding(ds: Dataset) -> bool:
    """Whether an instance says of a value that it is padding; none of a color image is."""
    keywords = {_BITS[0], *(value for value, _ in _NUMBERS)}
    groups = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    frames = [group for keyword in groups for group in ds.get(keyword) or []]
    holders = [ds, *(item for frame in frames for keyword in _CONVERTED for item in frame.get(keyword) or [])]
    return int(ds.get("SamplesPerPixel") or 1) == 1 and any(key in holder for holder in holders for key in keywords)


def find_padding(ds: Dataset, index: int, frame: np.ndarray) -> np.ndarray | None:
    """Where a frame is padding.

    Args:
        ds: its instance.
        index: the index of the frame, from 0.
        frame: stored values (rows, columns), the bits above Bits Stored as they came.

    Returns:
        (rows, columns) bool; None where the instance says nothing of padding.
    """
    holders = [ds, *(find_group(ds, index, macro) for macro in _CONVERTED)]
    corrected, found = correct_unused_bits(frame, ds), None
    for keywords in (_BITS, *_NUMBERS):
        ends = next((ends for holder in holders if (ends := _read_ends(holder, keywords))), [])
        if not ends:
            continue
        if keywords is _BITS and frame.dtype.kind in "iu":
            ends = [_wrap(int(end), int(ds.BitsAllocated), is_signed=frame.dtype.kind == "i") for end in ends]
        for values in (frame, corrected) if corrected is not frame else (frame,):
            inside = np.isnan(values) if math.isnan(ends[0]) else (values >= min(ends)) & (values <= max(ends))
            found = inside if found is None else found | inside
    return found


def correct_unused_bits(frame: np.ndarray, ds: Dataset) -> np.ndarray:
    """A frame's values without the bits above Bits Stored, whose content says nothing (PS3.5 8.1.1)."""
    if frame.dtype.kind == "f":
        return frame
    unused = 8 * frame.dtype.itemsize - int(ds.BitsStored)
    return frame if unused <= 0 else (frame << unused) >> unused


def choose_value(lowest: float, highest: float, dtype: np.dtype) -> tuple[float, np.dtype]:
    """A value below all that an image holds, for its padding, and a type that has room for it too.

    It is one below: viewers that know nothing of padding show it as black, and their windows stay as they are.
    """
    value = math.floor(lowest) - 1
    if dtype.kind in "iu":
        for kind in (dtype, np.dtype(np.int16), np.dtype(np.int32)):
            limits = np.iinfo(kind)
            if limits.min <= value and highest <= limits.max and np.float32(value) < np.float32(lowest):
                return value, kind
    lowest32 = np.float32(lowest)
    value32 = min(np.float32(value), np.nextafter(lowest32, np.float32(-np.inf)))
    return float(value32), np.dtype(np.float32)


def _read_ends(holder: Dataset, keywords: Iterable[str]) -> list[float]:
    """The padding value and the range's limit, one or both; nothing where they are no numbers."""
    ends = []
    for keyword in keywords:
        value = holder.get(keyword)
        if isinstance(value, bytes) and len(value) >= 2:  # US or SS, and its reader did not know which
            value = int.from_bytes(value[:2], "little")
        if isinstance(value, int | float):
            ends.append(value)
        elif not ends:
            return []
    return ends


def _wrap(value: int, bits: int, *, is_signed: bool) -> int:
    """The number that has the same bits."""
    value %= 1 << bits
    return value - (1 << bits) if is_signed and value >> bits - 1 else value
