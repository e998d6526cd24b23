"""From stored pixels to what they mean: the modality's rescale, high values bright, colors as RGB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from pydicom import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut

from iopfl.base.errors import SeriesError
from iopfl.dicomio.decoding import FLOATS, Decoder, find_pixels
from iopfl.dicomio.frames import count_frames, find_group
from iopfl.dicomio.padding import correct_unused_bits, find_padding, has_padding
from iopfl.dicomio.showing import show_code

COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR")
"""Photometric interpretations that become RGB (PS3.3 C.7.6.3.1.2)."""

GRAYS = ("MONOCHROME1", "MONOCHROME2")

MAX_SERIES_BYTES = 8 << 30
"""Decoded size beyond which a series is refused: 512 x 512 x 8192 voxels of 4 bytes."""


class Frame(NamedTuple):
    """A decoded frame.

    Attributes:
        pixels: (rows, columns), rescaled and with high values bright, or (rows, columns, 3) uint8 RGB.
        padding: where pixels are no image, (rows, columns) bool; None where the instance says of none.
    """

    pixels: np.ndarray
    padding: np.ndarray | None = None


def is_color(ds: Dataset) -> bool:
    """Whether an instance's frames become RGB."""
    return str(ds.get("PhotometricInterpretation", "")) in COLORS


def decoded_dtype(ds: Dataset) -> np.dtype:
    """Type of an instance's voxels as `decode_frames` gives them, headers only.

    Raises:
        SeriesError: bits or colors that are not read.
    """
    interpretation = str(ds.get("PhotometricInterpretation", ""))
    if interpretation not in GRAYS and interpretation not in COLORS:
        raise SeriesError(
            f"expected gray or RGB, YBR or palette colors, given {show_code(interpretation)}; give another export"
        )
    if interpretation in COLORS:
        return np.dtype(np.uint8)
    if find_pixels(ds) in FLOATS:
        return np.dtype(np.float32)
    bits = int(ds.BitsAllocated)
    if bits not in (8, 16, 32) or int(ds.get("SamplesPerPixel", 1)) != 1:
        raise SeriesError(f"expected gray pixels of 8, 16 or 32 bits, given {bits} bits; give another export")
    if _is_rescaled(ds):
        return np.dtype(np.int16 if _fits_int16(ds) else np.float32)
    return np.dtype(f"{'i' if int(ds.PixelRepresentation) else 'u'}{bits // 8}")


def decode_frames(ds: Dataset, decoder: Decoder) -> Iterator[Frame]:
    """Frames of an instance, one after the other, in stored order.

    Raises:
        SeriesError: as `Decoder.iterate`.
    """
    dtype, is_padded = decoded_dtype(ds), has_padding(ds)
    is_real = find_pixels(ds) in FLOATS
    for index, frame in enumerate(decoder.iterate(ds, raw=False, all_bits=is_padded)):
        if is_color(ds):
            yield Frame(_to_rgb(frame, ds))
        elif is_real:  # which no rescale applies to (PS3.3 C.7.6.24)
            yield _to_real(frame, find_padding(ds, index, frame) if is_padded else None)
        elif not is_padded:
            yield Frame(_to_intensities(frame, ds, index, dtype))
        else:
            padding = find_padding(ds, index, frame)
            yield Frame(_to_intensities(correct_unused_bits(frame, ds), ds, index, dtype), padding)


def _is_rescaled(ds: Dataset) -> bool:
    if "ModalityLUTSequence" in ds:
        return True
    return any(_rescale(ds, index) != (1.0, 0.0) for index in range(count_frames(ds)))


def _fits_int16(ds: Dataset) -> bool:
    """Whether every value that rescaling can give is a whole number of 16 bits, as of most CTs: half the memory."""
    if "ModalityLUTSequence" in ds:
        return False
    bits, signed = int(ds.BitsStored), bool(int(ds.PixelRepresentation))
    ends = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    for slope, intercept in {_rescale(ds, index) for index in range(count_frames(ds))}:
        values = [slope * end + intercept for end in ends]
        if not (slope.is_integer() and intercept.is_integer() and min(values) >= -32768 and max(values) <= 32767):
            return False
    return True


def _rescale(ds: Dataset, index: int) -> tuple[float, float]:
    """Slope and intercept of a frame."""
    source = find_group(ds, index, "PixelValueTransformationSequence")
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def _to_intensities(frame: np.ndarray, ds: Dataset, index: int, dtype: np.dtype) -> np.ndarray:
    if str(ds.PhotometricInterpretation) == "MONOCHROME1":
        bits = int(ds.BitsStored)
        lowest = -(1 << bits - 1) if int(ds.PixelRepresentation) else 0
        frame = (2 * lowest + (1 << bits) - 1) - frame.astype(np.int64)
    if "ModalityLUTSequence" in ds:
        return apply_modality_lut(frame, ds).astype(np.float32)
    slope, intercept = _rescale(ds, index)
    if (slope, intercept) == (1.0, 0.0):
        return frame
    return (frame * slope + intercept).astype(dtype)


def _to_real(frame: np.ndarray, padding: np.ndarray | None) -> Frame:
    """A frame of real values; what is no number, or none that 32 bits hold, is no image."""
    with np.errstate(over="ignore"):
        pixels = frame.astype(np.float32)
    nowhere = ~np.isfinite(pixels)
    return Frame(np.where(nowhere, np.float32(0), pixels), nowhere if padding is None else nowhere | padding)


def _to_rgb(frame: np.ndarray, ds: Dataset) -> np.ndarray:
    bits = int(ds.BitsStored)
    if str(ds.PhotometricInterpretation) == "PALETTE COLOR":
        frame = apply_color_lut(frame, ds)
        bits = 8 * frame.dtype.itemsize
    return (frame >> max(0, bits - 8)).astype(np.uint8) if bits > 8 else frame.astype(np.uint8)
