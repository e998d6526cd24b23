"""Where the experts of a bank disagree, voxel by voxel on the image's own grid: which part of a mask to check.

Each expert that votes on a series (`adaptation`) gives its own mask of the whole image, as it saw the series when it
voted. A voxel's disagreement is the variation ratio of these masks: the share of the experts that give another label
than most of them do (Freeman, Elementary Applied Statistics, 1965; of networks: Gal, Uncertainty in Deep Learning,
2016, section 3.3.1), in percent. Of masks rather than probabilities, as the quality score is (`agreement`). Experts
that fail in the same way agree here too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

CHECK_HERE = "check here"
"""What a region is called in which the experts disagree."""
CHECK_COLOR = "#FF4D6D"
"""Of such a region; no label has it (`colors`)."""
THRESHOLD = 100 / 3
"""Percent from which a voxel is to be checked: one of three experts, two of four. One of four is what most outlines
have."""

_SMALLEST_MM3 = 30.0
"""An island of less volume is left out: it is the roughness of an outline."""
_SMALLEST_PIXELS = 16
"""The same of a picture, which has no millimeters."""


def find_disagreement(masks: Sequence[Tensor]) -> Tensor:
    """Disagreement of several masks of one image.

    Args:
        masks: the masks of E experts, (X, Y, Z) uint8 each.

    Returns:
        (X, Y, Z) uint8, percent of the experts that give another label than most do.

    >>> find_disagreement([torch.tensor([[[label]]], dtype=torch.uint8) for label in (1, 1, 0)]).item()
    33
    """
    found = torch.empty_like(masks[0])
    percent = ((1 - torch.arange(len(masks) + 1) / len(masks)) * 100).round().to(torch.uint8)
    for z in range(found.shape[2]):  # a slice at a time: votes take E times its memory
        labels = torch.stack([mask[..., z] for mask in masks])  # (E, X, Y)
        votes = sum((labels == label).to(torch.uint8) for label in labels)  # (E, X, Y): of each one's label
        found[..., z] = percent[torch.as_tensor(votes).amax(0).long()]
    return found


def find_regions(disagreement: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """Where to check: connected parts of `THRESHOLD` or more that are no specks.

    Args:
        disagreement: (X, Y, Z) percent.
        affine: (4, 4), voxel index to mm; None for a picture.

    Returns:
        (X, Y, Z) uint8, 1 where to check.
    """
    regions = disagreement >= int(THRESHOLD)
    found = np.zeros(disagreement.shape, np.uint8)
    if not regions.any():
        return found
    smallest: float = _SMALLEST_PIXELS
    if affine is not None:
        smallest = max(2.0, _SMALLEST_MM3 / abs(float(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3]))))
    (box,) = ndimage.find_objects(regions.view(np.uint8))
    parts, _ = ndimage.label(regions[box], np.ones((3, 3, 3)))
    kept = np.bincount(parts.ravel()) >= smallest
    kept[0] = False
    found[box] = kept[parts]
    return found
