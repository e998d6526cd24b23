"""The most probable class of voxels."""

from __future__ import annotations

import torch
from torch import Tensor


def find_largest(probabilities: Tensor) -> Tensor:
    """Index of the most probable class, of several that are equally probable the first.

    The same as `max(0).indices` of torch, which takes several times as long where a class's voxels lie side by side.

    Args:
        probabilities: (K, ...), of at most 256 classes.

    Returns:
        (...) uint8.
    """
    largest = probabilities[0].clone()
    index = torch.zeros_like(largest, dtype=torch.uint8)
    for number in range(1, len(probabilities)):
        is_larger = probabilities[number] > largest
        torch.maximum(index, is_larger.to(torch.uint8).mul_(number), out=index)
        torch.maximum(largest, probabilities[number], out=largest)
    return index
