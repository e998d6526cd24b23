"""What a radiologist reads off a mask: the volume and the long axis of each label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

_MM3_PER_ML = 1000.0
_HALF_PIXELS = np.array([(-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)])
"""From the center of a pixel to the outline of a mask, which runs halfway between centers."""


@dataclass(frozen=True)
class Measurement:
    """The size of one label in a mask.

    Attributes:
        label: its name.
        voxels: how many have it.
        volume: in ml; None for a picture, which has no millimeters.
        long_axis: the longest straight line between two points of the label's outline in one slice (RECIST 1.1), in
            mm, or in pixels for a picture; 0 for a label without a voxel.
    """

    label: str
    voxels: int
    volume: float | None
    long_axis: float

    def to_params(self) -> dict[str, float]:
        """As plain values, by names that say the unit."""
        if self.volume is None:
            return {"pixels": self.voxels, "long_axis_pixels": round(self.long_axis, 1)}
        return {"volume_ml": round(self.volume, 4), "long_axis_mm": round(self.long_axis, 2)}


def measure(mask: np.ndarray, labels: Mapping[str, int], affine: np.ndarray | None) -> list[Measurement]:
    """Measure each label of a mask, in the order of `labels`.

    Args:
        mask: (X, Y, Z) label values; slices lie along the axis with the largest spacing, along Z where none is larger.
        labels: name -> value.
        affine: (4, 4), voxel index to mm; None for a picture.
    """
    columns = np.eye(3) if affine is None else np.asarray(affine, dtype=float)[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    across = 2 if spacing[2] >= spacing.max() * (1 - 1e-3) else int(spacing.argmax())
    in_plane = np.delete(columns, across, axis=1)  # (3, 2), mm per pixel
    slices = np.moveaxis(mask, across, 0)
    counts, longest = dict.fromkeys(labels.values(), 0), dict.fromkeys(labels.values(), 0.0)
    for plane in slices:
        present = np.bincount(plane.ravel(order="K"), minlength=256)
        for value in counts:
            if present[value]:
                counts[value] += int(present[value])
                longest[value] = max(longest[value], _long_axis(plane == value, in_plane))
    voxel = abs(float(np.linalg.det(columns))) / _MM3_PER_ML
    return [
        Measurement(name, counts[value], None if affine is None else counts[value] * voxel, longest[value])
        for name, value in labels.items()
    ]


def find_affine(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """The affine of an image that has millimeters; None for a picture: one slice, and an affine that says nothing."""
    return None if shape[-1] == 1 and np.array_equal(affine, np.eye(4)) else affine


def _long_axis(plane: np.ndarray, in_plane: np.ndarray) -> float:
    """Longest distance between two points of the outline of a mask (A, B) that is not empty."""
    rows = np.flatnonzero(plane.any(axis=1))
    first = plane[rows].argmax(axis=1)
    last = plane.shape[1] - 1 - plane[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([rows, first], axis=1), np.stack([rows, last], axis=1)])
    points = (ends[:, None] + _HALF_PIXELS).reshape(-1, 2)
    return float(pdist(points[ConvexHull(points).vertices] @ in_plane.T).max())
