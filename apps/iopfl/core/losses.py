"""Losses: of local training (MONAI's), and what the published adaptation's shape constraint is made of."""

from __future__ import annotations

import torch
from monai.losses import DiceCELoss
from torch import Tensor


def build_segmentation_loss() -> DiceCELoss:
    """Dice plus cross-entropy of logits (B, K, *S) against class shares (B, K, *S)."""
    return DiceCELoss(softmax=True, include_background=False, batch=True)


def boundary(foreground: Tensor, *, kernel_size: int) -> Tensor:
    """Max-pool plus max-pool of the negative, (B, *S) to (B, *S): high where the foreground changes.

    Source: the shape constraint of IOP-FL, section III-C: a compact, decided
    foreground has a short and thin boundary.
    """
    pool = torch.nn.functional.max_pool2d if foreground.ndim == 3 else torch.nn.functional.max_pool3d
    image = foreground[:, None]
    padding = kernel_size // 2
    return (pool(image, kernel_size, 1, padding) + pool(-image, kernel_size, 1, padding))[:, 0]
