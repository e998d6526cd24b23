"""Segmentation metrics, from MONAI: foreground Dice, HD95 and ASSD of each scored region.

Where prediction or reference is empty, as MONAI documents: an empty reference
leaves all three undefined (NaN); an empty prediction has Dice 0 and undefined distances.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from torch import Tensor

from iopfl.core.task import Task


def region_dice(predicted: Tensor, reference: Tensor, task: Task) -> Tensor:
    """Dice of each scored region: class indices (*S) to (R,), NaN where the reference has none of it."""
    return compute_dice(_regions(predicted, task), _regions(reference, task), ignore_empty=True)[0]


def surface_distances(
    predicted: Tensor, reference: Tensor, task: Task, *, spacing: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """HD95 and ASSD of each scored region.

    Args:
        predicted: class indices (*S).
        reference: class indices (*S).
        task: says the regions.
        spacing: in mm, one number an axis of S; ones give pixels.

    Returns:
        HD95 and ASSD, (R,) each; NaN where either mask is empty.
    """
    hd95, assd = [], []
    for prediction, truth in zip(_regions(predicted, task)[0], _regions(reference, task)[0], strict=True):
        if not prediction.any() or not truth.any():
            hd95.append(torch.nan)
            assd.append(torch.nan)
            continue
        pair = (prediction[None, None], truth[None, None])
        options: dict[str, Any] = {"spacing": list(spacing), "include_background": True}
        with warnings.catch_warnings():  # MONAI's, about arguments that it passes itself
            warnings.simplefilter("ignore", FutureWarning)
            hd95.append(compute_hausdorff_distance(*pair, percentile=95, **options).item())
            assd.append(compute_average_surface_distance(*pair, symmetric=True, **options).item())
    return torch.tensor(hd95), torch.tensor(assd)


def _regions(classes: Tensor, task: Task) -> Tensor:
    """Class indices (*S) to masks (1, R, *S)."""
    masks = [torch.isin(classes, torch.tensor(members)) for members in task.scored_regions.values()]
    return torch.stack(masks)[None].float()
