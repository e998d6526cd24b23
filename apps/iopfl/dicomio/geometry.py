"""Where slices lie in the patient: order, spacing, affine. The only place where LPS becomes RAS.

DICOM gives each slice a position and two directions in LPS (PS3.3 C.7.6.2);
a volume here has one affine, voxel index (x, y, z) -> RAS mm: x runs along a
row, y down a column, z along the normal, so that its determinant is positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iopfl.base.errors import SeriesError
from iopfl.dicomio.showing import AT_SOURCE
from iopfl.images.straightening import orthonormalize

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Its own inverse."""

SPACING_TOLERANCE = 0.05
"""Share of the slice distance by which a slice may lie beside its place in an even stack."""

DIRECTION_TOLERANCE = 1e-3
"""Difference of direction cosines up to which two slices count as parallel."""

_ROUNDING = 0.1 + 1e-6
"""mm that a coordinate may lie beside its place: of two positions that are rounded to 0.1 mm."""
_LEAST_ROUNDED = 0.25
"""Share of the slice distance beyond which that is not rounding: a missing slice moves others by half of it."""
_LEAST_BESIDE_STRAY = 5
"""Slices from which one of them can be told to be a stray one."""
_UNIT_TOLERANCE = 0.01  # of the directions' length: some round them to 2 digits
_SAME_POSITION = 1e-3  # mm
_FARTHEST = 1e5  # mm: no scanner is larger; beyond it, a number is broken
_SHOWN = 6


class SharedPositionError(SeriesError):
    """Several slices lie at one position: there are several volumes."""


class GapError(SeriesError):
    """Slices do not lie evenly.

    Attributes:
        what: what is wrong, without what to do about it, which depends on whether slices were left out.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what}; {advice}")
        self.what = what


@dataclass(frozen=True)
class Plane:
    """A slice in the patient.

    Attributes:
        position: center of the first pixel, LPS in mm.
        row: direction of a row (from column to column), LPS, length 1, as it is written: it may be rounded.
        column: direction of a column (from row to row), LPS, length 1, likewise.
        spacing: in mm, between columns and between rows: (x, y), the reverse of DICOM's Pixel Spacing.
    """

    position: tuple[float, ...]
    row: tuple[float, ...]
    column: tuple[float, ...]
    spacing: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = np.array([*self.position, *self.row, *self.column, *self.spacing])
        if not np.isfinite(numbers).all() or np.abs(numbers).max() > _FARTHEST:
            raise SeriesError(f"a slice's position, orientation or spacing is no plausible number of mm: {AT_SOURCE}")
        if min(self.spacing) <= 0:
            raise SeriesError(f"expected a positive Pixel Spacing, given {self.spacing}: {AT_SOURCE}")
        row, column = np.array(self.row), np.array(self.column)
        lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
        if np.abs(lengths - 1).max() > _UNIT_TOLERANCE or orthonormalize(np.stack([row, column], axis=1)) is None:
            raise SeriesError(
                f"expected two perpendicular directions of length 1 as Image Orientation, given {self.row} and "
                f"{self.column}: {AT_SOURCE}"
            )

    @property
    def directions(self) -> np.ndarray:
        """Of a row and of a column, at right angles and of length 1, LPS, (3, 2)."""
        directions = orthonormalize(np.stack([self.row, self.column], axis=1))
        assert directions is not None  # checked above
        return directions

    @property
    def normal(self) -> np.ndarray:
        """Direction from slice to slice: row x column, LPS, (3,)."""
        return np.cross(*self.directions.T)

    def is_parallel(self, other: Plane) -> bool:
        """Whether both have the same directions."""
        mine, its = np.array([*self.row, *self.column]), np.array([*other.row, *other.column])
        return bool(np.abs(mine - its).max() <= DIRECTION_TOLERANCE)


def have_same_spacing(first: Plane, second: Plane) -> bool:
    """Whether two slices have pixels of one size."""
    return np.allclose(first.spacing, second.spacing, rtol=1e-3)


def order_slices(planes: Sequence[Plane]) -> list[int]:
    """Indices of slices along their normal.

    Raises:
        SharedPositionError: several lie at one position.
        SeriesError: they are not parallel, or differ in spacing.
    """
    first = planes[0]
    if not all(first.is_parallel(plane) for plane in planes):
        raise SeriesError("expected parallel slices, given several orientations; send one stack a series")
    if not all(have_same_spacing(first, plane) for plane in planes):
        raise SeriesError("expected one pixel spacing, given several; send one stack a series")
    along = _along(planes)
    order = [int(index) for index in np.argsort(along, kind="stable")]
    shared = int((np.diff(along[order]) < _SAME_POSITION).sum())
    if shared and shared == len(planes) - 1:
        raise SharedPositionError(
            f"expected each position once, but all {len(planes)} slices lie at one: one slice many times over, or "
            "an export that lost where they lie; give a series of slices with positions of their own"
        )
    if shared:
        raise SharedPositionError(
            f"expected each position once, but {shared} of {len(planes)} slices lie where another does; "
            "the series holds several volumes (echoes, times, diffusion weights): send one of them"
        )
    return order


def build_affine(planes: Sequence[Plane], *, thickness: float) -> np.ndarray:
    """Voxel index to RAS mm, of slices in order.

    The distance of slices is that of their positions, never Slice Thickness:
    slices may overlap or have gaps. A constant sideways shift (gantry tilt)
    becomes a sheared affine, which `straighten` puts right.

    Args:
        planes: in order of the normal, each position once.
        thickness: distance assumed where there is one slice only, in mm.

    Returns:
        (4, 4) float64.

    Raises:
        SeriesError: the distances differ, hence slices are missing or the stack is bent.
    """
    first = planes[0]
    step = first.normal * thickness if len(planes) == 1 else _find_step(planes)
    return LPS_TO_RAS @ stack_affine(first, step)


def stack_affine(plane: Plane, step: np.ndarray) -> np.ndarray:
    """Voxel index to LPS mm of slices that begin with a plane and go on by a step (3,) in mm: (4, 4)."""
    affine = np.eye(4)
    affine[:3, :2] = plane.directions * plane.spacing
    affine[:3, 2] = step
    affine[:3, 3] = plane.position
    return affine


def find_stray(planes: Sequence[Plane]) -> int | None:
    """Index of the one slice that lies on no place of the even stack that all others make; None where there is none.

    One that lies on a place beyond a gap is none: slices are missing there.

    Args:
        planes: in order of the normal.
    """
    if len(planes) < _LEAST_BESIDE_STRAY or _is_even(planes):
        return None
    along, found = _along(planes), []
    near = np.diff(along) < (1 - _LEAST_ROUNDED) * np.median(np.diff(along))
    between = [index + 1 for index in np.flatnonzero(near[:-1])]
    for index in sorted({0, *between, len(planes) - 1}):
        rest = [plane for other, plane in enumerate(planes) if other != index]
        if not _is_even(rest):
            continue
        step = _find_step(rest)
        distance = float(rest[0].normal @ step)
        number = round((along[index] - _along(rest)[0]) / distance)
        off = np.array(planes[index].position) - np.array(rest[0].position) - number * step
        is_near = -len(rest) <= number < 2 * len(rest)
        if not is_near or np.linalg.norm(off) > max(_LEAST_ROUNDED * distance, 3 * _ROUNDING):
            found.append(index)
    return found[0] if len(found) == 1 else None


def _is_even(planes: Sequence[Plane]) -> bool:
    try:
        _find_step(planes)
    except SeriesError:
        return False
    return True


def is_close(off: np.ndarray, distance: float) -> bool:
    """Whether slices lie on the places of an even stack, but for the precision of their positions.

    Args:
        off: (N, 3), from a slice's place to where it lies, LPS in mm.
        distance: the distance of slices, in mm.
    """
    if np.linalg.norm(off, axis=1).max() <= SPACING_TOLERANCE * distance:
        return True
    return bool(np.abs(off).max() <= _ROUNDING <= _LEAST_ROUNDED * distance)


def _find_step(planes: Sequence[Plane]) -> np.ndarray:
    """From one slice to the next, LPS in mm, (3,)."""
    positions = np.array([plane.position for plane in planes])
    count = len(planes)
    step = (positions[-1] - positions[0]) / (count - 1)
    off = positions - (positions[0] + np.arange(count)[:, None] * step)
    distance = float(planes[0].normal @ step)
    if np.linalg.norm(off, axis=1).max() > SPACING_TOLERANCE * distance:
        step, first = np.polyfit(np.arange(count), positions, 1)  # of all slices: the ends alone may be rounded
        apart = np.diff(_along(planes))
        has_gap = apart.max() > (1 + 2 * _LEAST_ROUNDED) * np.median(apart)
        if has_gap or not is_close(positions - (first + np.arange(count)[:, None] * step), distance):
            raise _describe_gaps(planes)
    if np.linalg.norm(step - planes[0].normal * distance) > distance:
        raise SeriesError("expected slices on top of each other, but they shift sideways by more than their distance")
    return step


def _describe_gaps(planes: Sequence[Plane]) -> GapError:
    along = _along(planes)
    distances = np.diff(along)
    usual = float(np.median(distances))
    tolerance = max(SPACING_TOLERANCE, min(2 * _ROUNDING / usual, 2 * _LEAST_ROUNDED))
    wide = [index for index in range(len(distances)) if distances[index] > (1 + tolerance) * usual]
    gaps = [f"{along[index]:.2f} and {along[index + 1]:.2f}" for index in wide[:_SHOWN]]
    more = f" and {len(wide) - _SHOWN} more" if len(wide) > _SHOWN else ""
    missing = round(sum(distances[index] / usual - 1 for index in wide))
    if wide and missing and np.abs(distances / usual - np.round(distances / usual)).max() <= tolerance:
        slices = "slice is" if missing == 1 else "slices are"
        what = f"{missing} {slices} missing, between {', '.join(gaps)} mm{more} along the normal"
        advice = "send the whole series"
    else:
        what = f"the distances range from {distances.min():.2f} to {distances.max():.2f} mm" + (
            f", widest between {', '.join(gaps)} mm{more} along the normal" if gaps else ", or slices shift sideways"
        )
        advice = "give a series that is evenly spaced"
    return GapError(f"expected evenly spaced slices, here one every {usual:.2f} mm, but {what}", advice)


def _along(planes: Sequence[Plane]) -> np.ndarray:
    """Positions along the first slice's normal, in mm, (N,)."""
    return np.array([plane.position for plane in planes]) @ planes[0].normal
