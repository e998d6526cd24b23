"""Stacks whose slices shift sideways, as of a tilted gantry, on a grid at right angles, which is all that ITK opens.

Each slice is moved in its plane by whole voxels, so that no value changes and a mask goes back onto its slices exactly;
a voxel lies at most half of one beside its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

_RIGHT_ANGLE = 0.02
"""Cosine between rows and columns, up to which they count as at right angles: some round directions to 2 digits."""
_STRAIGHT = 1e-6
"""Of a stack's shear, below which it has none."""
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
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    offsets: np.ndarray
    straight_shape: tuple[int, int, int]
    straight_affine: np.ndarray

    def lay(self, slices: np.ndarray, fill: float = 0) -> np.ndarray:
        """Slices (X, Y, Z[, 3]) on the straight grid, (X', Y', Z[, 3]), with a value beside them."""
        if not self.offsets.any() and self.straight_shape == self.shape:
            return slices
        shape = (*self.straight_shape, *slices.shape[3:])
        laid = np.full(shape[::-1], fill, slices.dtype).T if slices.ndim == 3 else np.full(shape, fill, slices.dtype)
        for z in range(self.shape[2]):
            self.take_slice(laid, z)[...] = slices[:, :, z]
        return laid

    def take(self, laid: np.ndarray) -> np.ndarray:
        """What lies on the slices, (X, Y, Z[, 3]), of the straight grid, (X', Y', Z[, 3])."""
        if not self.offsets.any() and self.straight_shape == self.shape:
            return laid
        return np.stack([self.take_slice(laid, z) for z in range(self.shape[2])], axis=2)

    def take_slice(self, laid: np.ndarray, z: int) -> np.ndarray:
        """What lies on one slice, (X, Y[, 3]), of the straight grid."""
        x, y = self.offsets[z]
        return laid[x : x + self.shape[0], y : y + self.shape[1], z]


def straighten(shape: Sequence[int], affine: np.ndarray) -> Stack | None:
    """Put a stack on a straight grid; None where it cannot be, since its rows lean against its columns.

    Args:
        shape: (X, Y, Z).
        affine: (4, 4), voxel index to mm.

    >>> leaning = np.eye(4)
    >>> leaning[1, 2] = 0.5
    >>> straighten((4, 4, 5), leaning).straight_shape
    (4, 6, 5)
    """
    x, y, count = (int(edge) for edge in shape)
    lengths = np.linalg.norm(affine[:3, :2], axis=0)
    directions = orthonormalize(affine[:3, :2] / lengths)
    if directions is None:
        return None
    step = affine[:3, 2]
    normal = np.cross(*directions.T)
    straight = affine.astype(np.float64)
    straight[:3, :2] = directions * lengths
    straight[:3, 2] = normal * (normal @ step)
    lean = (step @ directions) / lengths  # voxels from slice to slice
    lean[np.abs(lean) < _STRAIGHT] = 0
    offsets = np.floor(np.arange(count)[:, None] * lean + 0.5 + _TIE).astype(int)
    first = offsets.min(axis=0)
    straight[:3, 3] += straight[:3, :2] @ first
    offsets = offsets - first
    width, height = offsets.max(axis=0).tolist()
    return Stack((x, y, count), affine, offsets, (x + width, y + height, count), straight)


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


def orthonormalize(directions: np.ndarray) -> np.ndarray | None:
    """The closest two directions at right angles, (3, 2), to two of about length 1; None of others."""
    if abs(directions[:, 0] @ directions[:, 1]) > _RIGHT_ANGLE:
        return None
    left, _, right = np.linalg.svd(directions, full_matrices=False)
    return left @ right
