"""Pictures show what is where."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from iopfl.base.errors import ConfigError
from iopfl.core.colors import label_colors
from iopfl.core.task import Task
from iopfl.web.pictures import count_slices, find_best_slice, overlay, to_png

TASK = Task(name="t", labels={"a": 1, "b": 2}, spatial_dims=2)


def make_volume(affine: torch.Tensor, shape: tuple[int, ...] = (20, 30, 6)) -> MetaTensor:
    return MetaTensor(torch.zeros(1, *shape), affine=affine)


def center_of(drawn: Image.Image, color: str) -> tuple[float, float]:
    """Where a picture is closest to a color, as shares of width and height."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    near = np.abs(np.asarray(drawn).astype(int) - wanted).sum(-1) < 60
    rows, columns = np.nonzero(near)
    return columns.mean() / drawn.width, rows.mean() / drawn.height


def test_heat_lies_where_the_experts_disagree_and_nowhere_else():
    image = make_volume(torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0])).double())
    where = torch.zeros(20, 30, 6, dtype=torch.uint8)
    where[14:18, 24:28, 4] = 50
    drawn = np.asarray(overlay(image, torch.zeros_like(where), TASK, slice_index=4, disagreement=where)).astype(int)
    rows, columns = np.nonzero(drawn[..., 0] - drawn[..., 2] > 40)
    assert columns.mean() / drawn.shape[1] == pytest.approx(1 - 16 / 20, abs=0.02)
    assert rows.mean() / drawn.shape[0] == pytest.approx(1 - 26 / 30, abs=0.02)
    assert len(rows) / drawn[..., 0].size == pytest.approx(16 / 600, rel=0.4)


@pytest.mark.parametrize(
    ("axes", "place"),
    [
        ("RAS", (slice(14, 18), slice(24, 28))),
        ("LPS", (slice(2, 6), slice(2, 6))),
        ("LAS", (slice(2, 6), slice(24, 28))),
    ],
)
def test_right_anterior_is_at_the_upper_left_in_any_orientation(axes, place):
    signs = [1.0 if axis in "RAS" else -1.0 for axis in axes]
    image = make_volume(torch.diag(torch.tensor([*signs, 1.0])).double())
    mask = torch.zeros(20, 30, 6, dtype=torch.uint8)
    mask[(*place, 4)] = 1
    across, down = center_of(overlay(image, mask, TASK), label_colors(TASK)["a"])
    assert across < 0.35
    assert down < 0.35


def test_axes_in_another_order_are_put_right():
    affine = torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]]).double()  # (A, S, R)
    image = make_volume(affine, (30, 6, 20))
    mask = torch.zeros(30, 6, 20, dtype=torch.uint8)
    mask[24:28, 4, 14:18] = 1
    assert count_slices(image) == 6
    assert find_best_slice(image, mask) == 4
    drawn = overlay(image, mask, TASK)
    assert drawn.width / drawn.height == pytest.approx(20 / 30, rel=0.01)
    assert max(center_of(drawn, label_colors(TASK)["a"])) < 0.35


def test_spacing_decides_the_proportions():
    image = make_volume(torch.diag(torch.tensor([2.0, 1.0, 5.0, 1.0])).double())
    assert overlay(image, None, TASK).size == (960, 720)
    assert overlay(image, None, TASK, spacing=(1, 1, 1)).size == (640, 960)


def test_a_picture_keeps_its_colors_and_its_way_up():
    image = torch.zeros(3, 40, 20, 1)
    image[0, :10, :5] = 255
    drawn = overlay(image, None, TASK)
    assert drawn.size == (960, 480)
    assert drawn.getpixel((30, 30)) == (255, 0, 0)
    assert drawn.getpixel((900, 400)) == (0, 0, 0)


def test_labels_and_reference_have_their_own_lines():
    image = make_volume(torch.eye(4).double())
    mask = torch.zeros(20, 30, 6, dtype=torch.uint8)
    mask[2:8, 2:8, 1], mask[10:16, 12:20, 1] = 1, 2
    colors = label_colors(TASK)
    assert center_of(overlay(image, mask, TASK), colors["a"])[0] > center_of(overlay(image, mask, TASK), colors["b"])[0]
    with_reference = overlay(image, mask, TASK, reference=mask.roll(3, 0))
    assert (np.asarray(with_reference).min(-1) > 200).any()
    assert not (np.asarray(overlay(image, mask, TASK)).min(-1) > 200).any()


def test_what_does_not_fit_is_refused():
    image = make_volume(torch.eye(4).double())
    with pytest.raises(ConfigError, match="slices 0 to 5"):
        overlay(image, None, TASK, slice_index=6)
    with pytest.raises(ConfigError, match="expected the image's grid"):
        overlay(image, torch.zeros(3, 3, 3), TASK)


def test_png_is_without_loss():
    drawn = overlay(torch.rand(3, 8, 8, 1) * 255, None, TASK)
    assert Image.open(io.BytesIO(to_png(drawn))).tobytes() == drawn.tobytes()
