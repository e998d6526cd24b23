"""Views of an image that its anatomy allows: mirrored and turned, with their inverses.

Training augments with them, adaptation asks for the same answer under them,
and the final prediction averages over them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from iopfl.core.task import Task


@dataclass(frozen=True)
class View:
    """Mirror the spatial axes `flips` (from 0), then `turns` quarter turns of the first two.

    >>> image = torch.arange(6.0).reshape(1, 1, 2, 3)
    >>> view = View(flips=(0,), turns=1)
    >>> bool((view.undo(view.apply(image)) == image).all())
    True
    """

    flips: tuple[int, ...] = ()
    turns: int = 0

    def apply(self, images: Tensor) -> Tensor:
        """(N, C, *S) to the view's (N, C, *S'); the image itself, not a copy, where the view is nothing else."""
        images = images.flip([axis + 2 for axis in self.flips]) if self.flips else images
        return torch.rot90(images, self.turns, (2, 3)) if self.turns else images

    def undo(self, outputs: Tensor) -> Tensor:
        """What the network made of the view, back on the image's grid."""
        outputs = torch.rot90(outputs, -self.turns, (2, 3)) if self.turns else outputs
        return outputs.flip([axis + 2 for axis in self.flips]) if self.flips else outputs


def views_of(task: Task) -> list[View]:
    """All views of a task, each different image once: the image itself, what turns alone give, then mirror images.

    A few of them are taken from the front. Turns differ most: with two mirrors and quarter turns the first four see
    nearly what all eight do.
    """
    mirrors = [flips for size in range(len(task.flips) + 1) for flips in itertools.combinations(task.flips, size)]
    # Turns need a square window. With both mirrors, two turns are a view that is there already.
    square = task.size[0] == task.size[1]
    turns: tuple[int, ...] = (0,)
    if task.rotations and square:
        turns = (0, 1) if {0, 1} <= set(task.flips) else (0, 1, 2, 3)
    views = [View(flips, turn) for turn in turns for flips in mirrors]
    return sorted(views, key=lambda view: len(view.flips) % 2)
