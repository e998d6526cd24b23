"""Volume and long axis of labels: against shapes whose size is known, on any grid."""

from __future__ import annotations

import numpy as np
import pytest

from iopfl.core.measuring import measure

LABELS = {"ball": 1, "box": 5}


def turned(degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


@pytest.mark.parametrize("spacing", [(0.7, 0.9, 3.0), (1, 1, 1), (3.0, 0.7, 0.9), (0.5, 0.5, 5.0)])
@pytest.mark.parametrize("degrees", [0, 37])
def test_a_ball_has_its_volume_and_diameter_whatever_the_grid(spacing, degrees):
    radius, size = 15.0, [int(44 / step) for step in spacing]
    affine = np.eye(4)
    affine[:3, :3] = turned(degrees) @ np.diag(spacing)
    affine[:3, 3] = (-100, 20, 3)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    places = (grid - (np.array(size) - 1) / 2) * spacing
    mask = (np.linalg.norm(places, axis=-1) <= radius).astype(np.uint8)
    ball, box = measure(mask, LABELS, affine)
    assert ball.volume == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.03)
    assert ball.long_axis == pytest.approx(2 * radius, abs=max(sorted(spacing)[:2]))
    assert (box.voxels, box.volume, box.long_axis) == (0, 0, 0)
    assert measure(np.asfortranarray(mask), LABELS, affine) == [ball, box]


def test_the_long_axis_lies_within_one_slice():
    mask = np.zeros((9, 9, 9), np.uint8)
    mask[2, 2], mask[2, 2:6, 4] = 5, 5  # nine voxels across slices, four within one
    affine = np.diag([1.0, 2.0, 5.0, 1.0])
    assert measure(mask, LABELS, affine)[1].long_axis == pytest.approx(8)


def test_a_picture_is_measured_in_pixels_and_has_no_volume():
    mask = np.zeros((40, 30, 1), np.uint8)
    mask[3, 4, 0] = 1
    mask[10:20, 7, 0] = 5
    assert [vars(item) for item in measure(mask, LABELS, None)] == [
        {"label": "ball", "voxels": 1, "volume": None, "long_axis": 1.0},
        {"label": "box", "voxels": 10, "volume": None, "long_axis": 10.0},
    ]


def test_a_sheared_grid_is_measured_in_space():
    mask = np.zeros((20, 20, 2), np.uint8)
    mask[:, 5, 0] = 1
    mask[5, :, 1] = 5
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[0, 1] = 0.5  # y leans along x
    ball, box = measure(mask, LABELS, affine)
    assert ball.long_axis == pytest.approx(20)
    assert box.long_axis == pytest.approx(20 * np.hypot(1, 0.5))
    assert ball.volume == pytest.approx(0.06)
