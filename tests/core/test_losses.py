"""Losses: expected numbers, where gradients go, and what they do not depend on."""

from __future__ import annotations

import math

import pytest
import torch

from iopfl.core.agreement import expert_agreement, mask_agreement
from iopfl.core.losses import boundary, build_segmentation_loss
from iopfl.core.published import SHAPE_FACTOR, published_loss

SQUARE = torch.zeros(1, 8, 8)
SQUARE[0, 2:6, 2:6] = 1
CUBE = torch.zeros(1, 8, 8, 8)
CUBE[0, 2:6, 2:6, 2:6] = 1


@pytest.mark.parametrize(
    ("foreground", "kernel_size", "expected"),
    [
        (torch.zeros(1, 8, 8), 3, 0.0),
        (torch.full((1, 8, 8), 0.5), 3, 0.0),
        (SQUARE, 1, 0.0),
        (SQUARE, 3, (6 * 6 - 2 * 2) / 64),  # two pixels wide around the edge
        (SQUARE, 5, 8 * 8 / 64),
        (0.5 * SQUARE, 3, (6 * 6 - 2 * 2) / 128),
        (CUBE, 3, (6**3 - 2**3) / 512),
    ],
)
def test_the_boundarys_mean_is_its_share_of_the_image(foreground, kernel_size, expected):
    assert boundary(foreground, kernel_size=kernel_size).mean().item() == pytest.approx(expected)


def test_the_boundarys_mean_does_not_depend_on_batch_or_image_size():
    single = boundary(SQUARE, kernel_size=3).mean()
    assert boundary(SQUARE.repeat(5, 1, 1), kernel_size=3).mean().item() == pytest.approx(single.item())
    assert boundary(SQUARE.repeat(1, 3, 3), kernel_size=3).mean().item() == pytest.approx(single.item())


def test_the_boundary_is_least_of_one_compact_foreground():
    scattered = torch.zeros(1, 8, 8)
    scattered[0, ::2, ::2] = 1  # as many pixels as the square
    assert scattered.sum() == SQUARE.sum()
    assert boundary(SQUARE, kernel_size=3).mean() < boundary(scattered, kernel_size=3).mean()


def test_the_boundary_has_the_images_shape_and_a_gradient():
    foreground = SQUARE.clone().requires_grad_()
    edge = boundary(foreground, kernel_size=5)
    assert edge.shape == foreground.shape
    edge.mean().backward()
    assert foreground.grad.abs().sum() > 0


def test_the_segmentation_loss_is_least_for_the_right_answer():
    shares = torch.zeros(1, 2, 8, 8)
    shares[:, 1], shares[:, 0] = SQUARE, 1 - SQUARE
    loss = build_segmentation_loss()
    right, wrong, unsure = (
        loss(logits, shares).item() for logits in (20 * (shares - 0.5), 20 * (0.5 - shares), 0 * shares)
    )
    assert right < 1e-2
    assert right < unsure < wrong
    # log 2 of cross-entropy and, with foreground 1/2 everywhere, a Dice of 2 * 8 / (32 + 16).
    assert unsure == pytest.approx(math.log(2) + 1 - 1 / 3, abs=1e-3)


def test_the_published_loss_of_an_undecided_image_is_its_entropy_summed_over_the_batch():
    for batch in (1, 3):
        logits = torch.zeros(batch, 2, 8, 8)
        assert published_loss(logits, logits).item() == pytest.approx(10 * batch * math.log(2), rel=1e-5)


def test_the_published_loss_adds_consistency_and_the_shape_constraint():
    sure = torch.zeros(1, 2, 8, 8)
    sure[:, 1], sure[:, 0] = 100 * SQUARE, 100 * (1 - SQUARE)
    edge = SHAPE_FACTOR * 8  # the window covers the image: 1 at each of 64 pixels
    assert published_loss(sure, sure).item() == pytest.approx(edge, rel=1e-3)
    assert published_loss(-sure, sure).item() == pytest.approx(0.1 + edge, rel=1e-3)


def prediction(foreground):
    return torch.stack([1 - foreground, foreground], dim=1)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (SQUARE, SQUARE, 1.0),
        (SQUARE, 1 - SQUARE, 0.0),
        (SQUARE, SQUARE.roll(2, 1), 0.5),
        (0 * SQUARE, 0 * SQUARE, 0.0),  # an empty answer is no evidence of a good one
        (SQUARE, 0 * SQUARE, 0.0),
    ],
)
def test_agreement_is_the_mask_agreement_of_foregrounds(first, second, expected):
    assert mask_agreement(prediction(first), prediction(second)) == pytest.approx(expected)


def test_expert_agreement_is_the_mean_over_experts():
    experts = torch.stack([prediction(SQUARE), prediction(SQUARE.roll(2, 1)), prediction(1 - SQUARE)])
    assert expert_agreement(experts, prediction(SQUARE)) == pytest.approx(0.5)
