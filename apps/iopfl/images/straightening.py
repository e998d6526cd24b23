"""Stacks whose slices shift sideways, as of a tilted gantry, on a grid at right angles, which is all that ITK opens.

Each slice is moved in its plane by whole voxels, and where rows lean against columns each row along itself, so that no
value changes and a mask goes back onto its slices exactly; a voxel lies at most half of one beside its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

RIGHT_ANGLE = 0.02
"""Cosine between rows and columns, up to which they count as at right angles: some round directions to 2 digits."""
EXACT = 1e-6
"""The same where directions are not rounded; and of a stack's shear, below which it has none."""
FLAT = 1e-3
"""Least volume of the box that an image's three unit directions span; below it they lie in a plane."""
_TIE = 1e-3  # voxels: half a voxel is rounded up, whatever the precision of a header


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices as they are, and where each of them lies on the straight grid.

    Attributes:
        shape: (X, Y, Z) of the slices.
        affine: (4, 4), of the slices, voxel index to mm; its third axis may lean.
        offsets: (Z, 2), voxels of the straight grid before a slice along x and y.
        straight_shape: (X', Y', Z) of the straight grid.
        straight_affine: (4, 4), its axes at right angles.
        lean: where rows lean against columns: voxels along x from row to row and from slice to slice, and before the
            first one; they say a row's place along x in place of `offsets`.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    offsets: np.ndarray
    straight_shape: tuple[int, int, int]
    straight_affine: np.ndarray
    lean: tuple[float, float, int] | None = None

    def lay(self, slices: np.ndarray, fill: float = 0) -> np.ndarray:
        """Slices (X, Y, Z[, 3]) on the straight grid, (X', Y', Z[, 3]), with a value beside them."""
        if self.straight_shape == self.shape:
            return slices
        shape = (*self.straight_shape, *slices.shape[3:])
        laid = np.full(shape[::-1], fill, slices.dtype).T if slices.ndim == 3 else np.full(shape, fill, slices.dtype)
        for z in range(self.shape[2]):
            laid[self._find(z)] = slices[:, :, z]
        return laid

    def take(self, laid: np.ndarray) -> np.ndarray:
        """What lies on the slices, (X, Y, Z[, 3]), of the straight grid, (X', Y', Z[, 3])."""
        if self.straight_shape == self.shape:
            return laid
        return np.stack([laid[self._find(z)] for z in range(self.shape[2])], axis=2)

    def _find(self, z: int) -> tuple[Any, ...]:
        """Index of one slice, (X, Y[, 3]), in the straight grid."""
        x, y = self.offsets[z]
        if self.lean is None:
            return slice(x, x + self.shape[0]), slice(y, y + self.shape[1]), z
        columns, rows = np.arange(self.shape[0])[:, None], np.arange(self.shape[1])
        return columns + _round(rows * self.lean[0] + z * self.lean[1]) + self.lean[2], rows + y, z


def straighten(shape: Sequence[int], affine: np.ndarray, *, right_angle: float = RIGHT_ANGLE) -> Stack:
    """Put a stack on a straight grid.

    Args:
        shape: (X, Y, Z).
        affine: (4, 4), voxel index to mm.
        right_angle: cosine between rows and columns up to which they count as at right angles; beyond it each row is
            moved along itself.

    >>> leaning = np.eye(4)
    >>> leaning[1, 2] = 0.5
    >>> straighten((4, 4, 5), leaning).straight_shape
    (4, 6, 5)
    """
    x, y, count = (int(edge) for edge in shape)
    lengths = np.linalg.norm(affine[:3, :2], axis=0)
    directions, across = orthonormalize(affine[:3, :2] / lengths, right_angle), 0.0
    if directions is None:
        first = affine[:3, 0] / lengths[0]
        across = float(affine[:3, 1] @ first)  # mm along x, from row to row
        second = affine[:3, 1] - across * first
        lengths = np.array([lengths[0], np.linalg.norm(second)])
        directions = np.stack([first, second / lengths[1]], axis=1)
    step = affine[:3, 2]
    normal = np.cross(*directions.T)
    straight = affine.astype(np.float64)
    straight[:3, :2] = directions * lengths
    straight[:3, 2] = normal * (normal @ step)
    shift = (step @ directions) / lengths  # voxels from slice to slice
    shift[np.abs(shift) < EXACT] = 0
    offsets = _round(np.arange(count)[:, None] * shift)
    first_offset, last_offset = offsets.min(axis=0), offsets.max(axis=0)
    lean = None
    if across:
        a, b = across / lengths[0], float(shift[0])
        ends = [int(_round(np.array(row * a + z * b))) for row in (0, y - 1) for z in (0, count - 1)]
        first_offset[0], last_offset[0] = min(ends), max(ends)
        lean = (a, b, -min(ends))
    straight[:3, 3] += straight[:3, :2] @ first_offset
    width, height = (last_offset - first_offset).tolist()
    return Stack((x, y, count), affine, offsets - first_offset, (x + width, y + height, count), straight, lean)


def find_lean(shape: Sequence[int], affine: np.ndarray) -> Stack | None:
    """Where a stack whose directions are not rounded lies on a straight grid; None = it has one.

    Args:
        shape: (X, Y, Z).
        affine: (4, 4), voxel index to mm.
    """
    with np.errstate(all="ignore"):
        box = abs(np.linalg.det(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)))
    if not box > FLAT:  # no image
        return None
    stack = straighten(shape, affine, right_angle=EXACT)
    return None if np.allclose(stack.straight_affine, affine, rtol=1e-6, atol=1e-9) else stack


def _round(voxels: np.ndarray) -> np.ndarray:
    return np.floor(voxels + 0.5 + _TIE).astype(int)


def find_plane(shape: Sequence[int], affine: np.ndarray) -> str:
    """`sagittal` or `coronal`, if a grid is one slice that lies so; "" of any other.

    Args:
        shape: (X, Y, Z).
        affine: (4, 4), voxel index to RAS mm.
    """
    edges = dict(zip(nib.io_orientation(affine)[:, 0].tolist(), shape, strict=True))  # by axis of the patient
    if edges[2] == 1:
        return ""
    return {edges[1]: "coronal", edges[0]: "sagittal"}.get(1, "")


def upright(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """The closest affine with axes at right angles, (4, 4), about the middle of a grid."""
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / edges)
    turned = affine.astype(np.float64)
    turned[:3, :3] = (left @ right) * edges
    turned[:3, 3] += (affine[:3, :3] - turned[:3, :3]) @ ((np.array(shape[:3]) - 1) / 2)
    return turned


def orthonormalize(directions: np.ndarray, right_angle: float = RIGHT_ANGLE) -> np.ndarray | None:
    """The closest two directions at right angles, (3, 2), to two of about length 1; None of others."""
    if abs(directions[:, 0] @ directions[:, 1]) > right_angle:
        return None
    left, _, right = np.linalg.svd(directions, full_matrices=False)
    return left @ right
