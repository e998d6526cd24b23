"""Losses: of local training (MONAI's), and of test-time adaptation (IOP-FL, section III-C).

Nothing here reads a label in adaptation. `published.py` holds the published
recipe's own forms where they differ.
"""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss
from torch import Tensor


def build_segmentation_loss() -> DiceCELoss:
    """Dice plus cross-entropy of logits (B, K, *S) against class shares (B, K, *S)."""
    return DiceCELoss(softmax=True, include_background=False, batch=True)


def consistency_loss(probabilities: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference; no gradient reaches the target.

    Args:
        probabilities: (B, K, *S) of one view.
        target: (B, K, *S), what it should agree with.
    """
    return (probabilities - target.detach()).square().mean()


def shape_constraint(foreground: Tensor, *, kernel_size: int) -> Tensor:
    """Mean thickness of the predicted boundary: max-pool minus min-pool of the foreground.

    A compact, decided foreground has a short and thin boundary. Source:
    IOP-FL, section III-C; there the Euclidean norm of the whole map, which
    grows with the image; here the mean, which does not.

    Args:
        foreground: probability, (B, *S), in 2 or 3 spatial dimensions.
        kernel_size: of the pooling window, in pixels; odd.
    """
    return boundary(foreground, kernel_size=kernel_size).mean()


def boundary(foreground: Tensor, *, kernel_size: int) -> Tensor:
    """Max-pool plus max-pool of the negative, (B, *S) to (B, *S): high where the foreground changes."""
    pool = torch.nn.functional.max_pool2d if foreground.ndim == 3 else torch.nn.functional.max_pool3d
    image = foreground[:, None]
    padding = kernel_size // 2
    return (pool(image, kernel_size, 1, padding) + pool(-image, kernel_size, 1, padding))[:, 0]
