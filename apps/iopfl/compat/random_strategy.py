"""The next sample is a bare 500 where the same images were offered within the last second.

Defect: `tasks/activelearning/random.py:45` weighs images by the seconds since each was offered; where
all of them are 0, as for a single unlabeled image asked for twice, `random.choices` refuses.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from iopfl.compat._patching import once


class _Random:
    """`random`, as far as the strategy uses it."""

    @staticmethod
    def choices(population: Sequence[Any], weights: Sequence[float]) -> list[Any]:
        return random.choices(population, [max(weight, 1) for weight in weights])


@once
def apply() -> None:
    """Let every image have some weight."""
    from monailabel.tasks.activelearning import random as strategy

    strategy.random = _Random
