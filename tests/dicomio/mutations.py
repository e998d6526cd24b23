"""Damaged DICOM: seeded, from a whole file, by flips, cuts, wrong lengths, lost and doubled elements."""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
from pydicom import Dataset, dcmread

LENGTHS = (0, 1, 3, 0x7FFF, 0xFFFE, 0xFFFFFFFF, 0xFFFFFFFE, 0x80000000)
NUMBERS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel", "PixelRepresentation")
TEXTS = (
    "NumberOfFrames",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SliceThickness",
    "PhotometricInterpretation",
    "RescaleSlope",
    "SegmentationType",
    "MaximumFractionalValue",
    "ImageType",
)
BROKEN = ("", "nan", "1e400", "-1", "0", "65535", "abc", "\\", "99999999999")


def mutate(data: bytes, seed: int) -> bytes:
    """One damaged copy of a file; the same for the same seed."""
    random = np.random.default_rng(seed)
    cheap = (_flip, _flip_in_header, _cut, _change_length)
    damage = (*cheap, *cheap, _drop_element, _garble_value)
    for _ in range(random.integers(1, 3)):
        data = damage[random.integers(len(damage))](data, random)
    return data


def _flip(data: bytes, random: np.random.Generator, end: int | None = None) -> bytes:
    changed = bytearray(data)
    for _ in range(random.integers(1, 9)):
        if changed:
            changed[random.integers(min(len(changed), end or len(changed)))] = random.integers(256)
    return bytes(changed)


def _flip_in_header(data: bytes, random: np.random.Generator) -> bytes:
    return _flip(data, random, end=1200)


def _cut(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(len(data) + 1)]


def _change_length(data: bytes, random: np.random.Generator) -> bytes:
    """Overwrite what may be an element's length: behind a pair of capital letters, a VR."""
    places = [match.end() for match in re.finditer(rb"\0[A-Z]{2}", data[131:])]
    if not places:
        return data
    place = 131 + places[random.integers(len(places))]
    length = int(LENGTHS[random.integers(len(LENGTHS))])
    wide = random.random() < 0.5
    replacement = b"\0\0" + length.to_bytes(4, "little") if wide else (length & 0xFFFF).to_bytes(2, "little")
    return data[:place] + replacement + data[place + len(replacement) :]


def _drop_element(data: bytes, random: np.random.Generator) -> bytes:
    with contextlib.suppress(Exception):  # of a parser at bytes that are damaged already
        ds = dcmread(io.BytesIO(data), force=True)
        tags = list(ds.keys())
        del ds[tags[random.integers(len(tags))]]
        return _write(ds)
    return data


def _garble_value(data: bytes, random: np.random.Generator) -> bytes:
    """Give an element a value that is no such value, in the image's or the frames' description."""
    with contextlib.suppress(Exception):
        ds = dcmread(io.BytesIO(data), force=True)
        keyword = [*NUMBERS, *TEXTS][random.integers(len(NUMBERS) + len(TEXTS))]
        holders = [holder for holder in _holders(ds) if keyword in holder]
        element = holders[random.integers(len(holders))][keyword]
        text = BROKEN[random.integers(len(BROKEN))]
        element.value = int(random.integers(65536)) if keyword in NUMBERS else text.split("\\")
        return _write(ds)
    return data


def _holders(ds: Dataset) -> list[Dataset]:
    """A data set and everything nested in it."""
    nested = [item for element in ds if element.VR == "SQ" for item in element.value]
    return [ds, *(holder for item in nested for holder in _holders(item))]


def _write(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()
