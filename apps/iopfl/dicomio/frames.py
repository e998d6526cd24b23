"""What is said of each frame of an instance, wherever it is said: in functional groups or in the instance itself."""

from __future__ import annotations

import math

from pydicom import Dataset

from iopfl.base.errors import SeriesError
from iopfl.dicomio.geometry import Plane
from iopfl.dicomio.showing import AT_SOURCE

MAX_FRAMES = 1 << 16
"""Of an instance, so that a broken number is not counted up to."""

_PLACE = (
    ("PlanePositionSequence", "ImagePositionPatient", 3),
    ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
    ("PixelMeasuresSequence", "PixelSpacing", 2),
)
_USUAL_THICKNESS = 1.0  # mm, where nothing is said


def count_frames(ds: Dataset) -> int:
    """Number of Frames, 1 where it is not said.

    Raises:
        SeriesError: more than any image has, hence broken.
    """
    count = int(ds.get("NumberOfFrames") or 1)
    if not 0 < count <= MAX_FRAMES:
        raise SeriesError(f"expected 1 to {MAX_FRAMES} frames, given {count}: {AT_SOURCE}")
    return count


def find_group(ds: Dataset, index: int, macro: str) -> Dataset:
    """What holds a frame's attributes of a functional group macro (PS3.3 C.7.6.16).

    Args:
        ds: single or multi-frame.
        index: the index of the frame, from 0.
        macro: its sequence, e.g. `PlanePositionSequence`.

    Returns:
        The frame's own item, or the shared one, or the instance itself.
    """
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for holder in [*([per_frame[index]] if index < len(per_frame) else []), *shared[:1]]:
        items = holder.get(macro)
        if items:
            return items[0]
    return ds


def find_plane(ds: Dataset, index: int = 0) -> Plane:
    """Where a frame lies in the patient.

    Raises:
        SeriesError: it does not say, or says what cannot be.
    """
    position, orientation, spacing = (_find_numbers(ds, index, *which) for which in _PLACE)
    return Plane(position, orientation[:3], orientation[3:], spacing[::-1])


def find_distance(ds: Dataset, index: int = 0) -> float | None:
    """Distance of slices that an instance claims, in mm; None = it does not say."""
    return _find_length(ds, index, "SpacingBetweenSlices")


def find_thickness(ds: Dataset, index: int = 0) -> float:
    """Distance to assume between slices where there is one only, in mm."""
    return find_distance(ds, index) or _find_length(ds, index, "SliceThickness") or _USUAL_THICKNESS


def _find_length(ds: Dataset, index: int, keyword: str) -> float | None:
    value = abs(float(find_group(ds, index, "PixelMeasuresSequence").get(keyword) or 0))
    return value if 0 < value < math.inf else None


def _find_numbers(ds: Dataset, index: int, macro: str, keyword: str, length: int) -> tuple[float, ...]:
    value = find_group(ds, index, macro).get(keyword)
    if value is None or len(value) != length:
        raise SeriesError(
            f"expected {keyword} of every slice, but it is missing, so nothing says where they lie; give another export"
        )
    return tuple(float(number) for number in value)
