"""Bringing frames drawn on any grid onto a series' grid, each voxel taking the nearest one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iopfl.base.errors import SeriesError
from iopfl.dicomio.geometry import LPS_TO_RAS, SPACING_TOLERANCE, Plane, is_close, stack_affine

MAX_VOXELS = 1 << 31
"""Of a grid that frames are spread over, so that two frames far apart cannot fill the memory."""

_ALIGNED = 0.05  # voxels by which aligned grids may drift apart over their whole extent
_TIE = 1e-3  # voxels: a center on the border of two voxels belongs to the upper one, whatever the rounding


def place_frames(
    planes: Sequence[Plane], affine: np.ndarray, *, distance: float | None, thickness: float
) -> tuple[list[int], np.ndarray]:
    """Put frames on an even grid, on which some slices may be missing.

    Args:
        planes: the planes of the frames, in any order; several may share a place.
        affine: the affine of the series, (4, 4) RAS.
        distance: the distance of slices that the frames claim, in mm; None = they do not say.
        thickness: the thickness of slices, in mm: their distance, unless they overlap or have gaps.

    Returns:
        The slice of the grid that each frame is, and the grid's affine, (4, 4) RAS.

    Raises:
        SeriesError: the frames are not parallel or not on one even grid.
    """
    first = planes[0]
    if not all(first.is_parallel(plane) and np.allclose(first.spacing, plane.spacing, rtol=1e-3) for plane in planes):
        raise SeriesError("expected parallel frames of one pixel spacing, given several orientations or spacings")
    positions = np.array([plane.position for plane in planes])
    along = positions @ first.normal
    base = int(along.argmin())
    for step in _steps(planes, LPS_TO_RAS @ affine, distance, thickness):
        numbers = np.rint((along - along[base]) / (first.normal @ step))
        if is_close(positions - (positions[base] + numbers[:, None] * step), float(np.linalg.norm(step))):
            return numbers.astype(int).tolist(), LPS_TO_RAS @ stack_affine(planes[base], step)
    raise SeriesError("expected frames on one even grid, but their positions have no common distance")


def _steps(planes: Sequence[Plane], affine: np.ndarray, distance: float | None, thickness: float) -> list[np.ndarray]:
    """From slice to slice, LPS: as the frames claim, as the series (affine in LPS) has it, as the positions suggest."""
    normal = planes[0].normal
    steps = [normal * (distance or thickness)]
    across = np.cross(affine[:3, 0], affine[:3, 1])
    if abs(normal @ across) > (1 - SPACING_TOLERANCE) * np.linalg.norm(across):
        # Overlapping slices are thicker than their distance, and would spread what is drawn on one to the next.
        place = 0 if distance is None and _lie_on(planes, affine) else 1
        steps.insert(place, affine[:3, 2] * np.sign(normal @ affine[:3, 2]))
    distances = np.diff(np.unique([plane.position @ normal for plane in planes]))
    distances = distances[distances > SPACING_TOLERANCE * thickness]
    return [*steps, normal * distances.min()] if distances.size else steps


def _lie_on(planes: Sequence[Plane], affine: np.ndarray) -> bool:
    """Whether frames lie on slices of a series (affine in LPS), pixel on pixel."""
    to_index = np.linalg.inv(affine)
    turned = (to_index @ stack_affine(planes[0], affine[:3, 2]))[:3, :3] - np.eye(3)
    indices = np.array([plane.position for plane in planes]) @ to_index[:3, :3].T + to_index[:3, 3]
    indices[:, 2] -= np.rint(indices[:, 2])
    if np.abs(turned).max() > SPACING_TOLERANCE:
        return False
    off = indices @ affine[:3, :3].T  # mm
    return bool(np.abs(indices).max() <= SPACING_TOLERANCE or is_close(off, float(np.linalg.norm(affine[:3, 2]))))


def resample_nearest(volume: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], onto: np.ndarray) -> np.ndarray:
    """A label volume on another grid; nothing (0) where it does not reach.

    Args:
        volume: (X', Y', Z') label values.
        affine: the affine of the volume, (4, 4) RAS.
        shape: (X, Y, Z) of the result.
        onto: affine of the result, (4, 4) RAS.
    """
    between = np.linalg.inv(affine) @ onto  # index of the result to index of the volume
    linear, offset = between[:3, :3], between[:3, 3]
    main = np.abs(linear).argmax(axis=1)  # axis of the result along which each axis of the volume runs
    drift = np.abs(linear) * np.array(shape)
    drift[np.arange(3), main] = 0
    if drift.max() <= _ALIGNED and sorted(main) == [0, 1, 2]:
        return _take_axes(volume, linear, offset, main, shape)
    x, y = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    result = np.zeros(shape, volume.dtype)
    for z in range(shape[2]):
        places = linear @ np.stack([x.ravel(), y.ravel(), np.full(x.size, z)]) + offset[:, None]  # (3, X * Y)
        indices = _nearest(places)
        inside = np.all((indices >= 0) & (indices < np.array(volume.shape)[:, None]), axis=0)
        flat = np.zeros(x.size, volume.dtype)
        flat[inside] = volume[tuple(indices[:, inside])]
        result[..., z] = flat.reshape(shape[:2])
    return result


def _take_axes(
    volume: np.ndarray, linear: np.ndarray, offset: np.ndarray, main: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """The same for aligned grids: one list of indices an axis."""
    filled = [slice(None)] * 3
    for axis in range(3):
        center = np.delete((np.array(shape) - 1) / 2, main[axis])
        drift = np.delete(linear[axis], main[axis]) @ center
        indices = _nearest(linear[axis, main[axis]] * np.arange(shape[main[axis]]) + offset[axis] + drift)
        inside = np.flatnonzero((indices >= 0) & (indices < volume.shape[axis]))
        volume = volume[(slice(None),) * axis + (_as_slice(indices[inside]),)]
        filled[main[axis]] = slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)
    result = np.zeros(shape, volume.dtype, order="F")  # as the frames lie in memory
    result[tuple(filled)] = volume.transpose(np.argsort(main))
    return result


def _as_slice(indices: np.ndarray) -> slice | np.ndarray:
    """Indices that count up by one, as a slice, which is many times faster."""
    if indices.size and (np.diff(indices) == 1).all():
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


def _nearest(places: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(places, -(1 << 30), 1 << 30) + 0.5 + _TIE).astype(np.int64)
