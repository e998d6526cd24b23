"""The pixels of a series' slices as one volume, frame after frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydicom import Dataset

from iopfl.base.errors import SeriesError
from iopfl.core.memory import check_volume
from iopfl.dicomio.decoding import Decoder, find_pixels
from iopfl.dicomio.padding import choose_value
from iopfl.dicomio.pixels import MAX_SERIES_BYTES, decode_frames, decoded_dtype, is_color
from iopfl.dicomio.showing import AT_SOURCE

_ALIKE = 0.5
"""Correlation from which two neighboring slices show the same, or one the other's negative."""


class Slice(NamedTuple):
    """One slice: a frame (from 0) of an instance."""

    ds: Dataset
    frame: int


def decode_volume(slices: Sequence[Slice]) -> tuple[np.ndarray, float | None]:
    """Decode every slice; its pixels are taken out of its instance.

    Returns:
        (X, Y, Z) or (X, Y, Z, 3); and the value of the voxels that are padding, None where there are none.

    Raises:
        SeriesError: pixels are missing, damaged, too many for the memory, or all of them padding.
    """
    first = slices[0].ds
    sources = {id(piece.ds): piece.ds for piece in slices}
    place = {(id(piece.ds), piece.frame): z for z, piece in enumerate(slices)}
    dtypes = {decoded_dtype(ds) for ds in sources.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    shape = (len(slices), int(first.Rows), int(first.Columns), *([3] if is_color(first) else []))
    check_volume(shape[2::-1], shape[3] if len(shape) > 3 else 1, dtype.itemsize)
    if np.prod(shape, dtype=np.float64) * dtype.itemsize > MAX_SERIES_BYTES:
        raise SeriesError(f"expected at most {MAX_SERIES_BYTES >> 30} GiB of voxels, given {shape}; send a part of it")
    volume, decoded = np.empty(0, dtype), 0
    padding: dict[int, np.ndarray] = {}  # of slices that have some, a bit a pixel
    with Decoder() as decoder:
        for key, ds in sources.items():
            for frame, (pixels, is_padding) in enumerate(decode_frames(ds, decoder)):
                if pixels.shape != shape[1:]:
                    raise SeriesError(f"expected frames of {shape[1:]} pixels, given {pixels.shape}: {AT_SOURCE}")
                if not volume.size:  # only now is it sure that such images are there
                    volume = np.empty(shape, dtype)
                volume[place[key, frame]] = pixels
                if is_padding is not None and is_padding.any():
                    padding[place[key, frame]] = np.packbits(is_padding)
                decoded += 1
            delattr(ds, find_pixels(ds))
    if decoded < len(slices):
        raise SeriesError(f"expected {len(slices)} frames, given {decoded}; send the series again")
    _check_inversion(volume, slices)
    volume, value = _fill(volume, padding)
    return volume.swapaxes(0, 2), value  # (X, Y, Z[, 3]), in the order of memory that NIfTI has


def _check_inversion(volume: np.ndarray, slices: Sequence[Slice]) -> None:
    """Check that slices that said that they are inverted, among others that did not, now look like those.

    Raises:
        SeriesError: they are negatives of them: then one of both says so falsely.
    """
    inverted = [str(piece.ds.PhotometricInterpretation) == "MONOCHROME1" for piece in slices]
    for z in range(1, len(slices)):
        if inverted[z - 1] == inverted[z]:
            continue
        pair = np.stack([volume[z - 1].ravel(), volume[z].ravel()]).astype(np.float64)
        if pair.std(axis=1).min() > 0 and np.corrcoef(pair)[0, 1] < -_ALIKE:
            raise SeriesError(
                "expected slices of one gray scale, but some say MONOCHROME1 and others MONOCHROME2, and by that they "
                "are each other's negatives: correct Photometric Interpretation, or export the series anew"
            )


def _fill(volume: np.ndarray, padding: Mapping[int, np.ndarray]) -> tuple[np.ndarray, float | None]:
    """Give all padding one value that nothing else has.

    Args:
        volume: (Z, Y, X), written over.
        padding: where slices that have padding have it: packed bits.

    Returns:
        The volume, in a type that has room for the value, and the value.
    """
    if not padding:
        return volume, None
    size, shape = volume[0].size, volume[0].shape

    def unpack(z: int) -> np.ndarray:
        return np.unpackbits(padding[z], count=size).reshape(shape).astype(bool)

    lowest, highest = np.inf, -np.inf
    for z, plane in enumerate(volume):
        pixels = plane[~unpack(z)] if z in padding else plane
        if pixels.size:
            lowest, highest = min(lowest, float(pixels.min())), max(highest, float(pixels.max()))
    if lowest > highest:
        raise SeriesError(
            "expected an image, but every pixel is padding by its Pixel Padding Value; correct that, or give another "
            "series"
        )
    value, dtype = choose_value(lowest, highest, volume.dtype)
    volume = volume.astype(dtype, copy=False)
    for z in padding:
        volume[z][unpack(z)] = value
    return volume, value
