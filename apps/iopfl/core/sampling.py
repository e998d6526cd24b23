"""A few places of a prepared image, on which experts are asked and an answer is judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from monai.data.utils import dense_patch_slices
from torch import Tensor

from iopfl.core.task import Task
from iopfl.core.transforms import to_instances

Place = tuple[slice, slice, slice]
"""Of an instance or a window in a prepared image, along X, Y and Z."""


def sample_places(volume: Tensor, task: Task, count: int) -> list[Place]:
    """At most `count` places in a prepared image (C, X, Y, Z), evenly: slices of a 2D task, windows of a 3D one."""
    x, y, z = volume.shape[1:]
    places: list[Place] = [(slice(0, x), slice(0, y), slice(index, index + 1)) for index in range(z)]
    if task.spatial_dims == 3:
        places = dense_patch_slices((x, y, z), task.size, task.size)
    count = min(count, len(places))
    return [places[int((index + 0.5) * len(places) / count)] for index in range(count)]


def sample_instances(volume: Tensor, task: Task, count: int) -> Tensor:
    """What lies at `sample_places`, as the network takes it: (N, in_channels, *S)."""
    places = sample_places(volume, task, count)
    if task.spatial_dims == 3:
        return torch.stack([volume[(slice(None), *place)] for place in places])
    return to_instances(volume, task, torch.tensor([place[2].start for place in places]))


def sample_padding(padding: Tensor | None, task: Task, count: int) -> Tensor | None:
    """Where the instances of `sample_instances` are no image, (N, *S) bool, of (X, Y, Z); None = nowhere."""
    if padding is None:
        return None
    found = torch.stack([padding[place] for place in sample_places(padding[None], task, count)])
    return found[..., 0] if task.spatial_dims == 2 else found


class Samples:
    """Keeps of an answer, which passes by in slabs, what lies at some places."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._kept: list[list[Tensor]] = [[] for _ in places]

    def take(self, slabs: Iterable[Tensor]) -> Iterator[Tensor]:
        """The slabs (K, X, Y, d) as they come."""
        begin = 0
        for slab in slabs:
            for (x, y, z), kept in zip(self._places, self._kept, strict=True):
                first, last = max(z.start, begin), min(z.stop, begin + slab.shape[3])
                if first < last:
                    kept.append(slab[:, x, y, first - begin : last - begin].clone())
            begin += slab.shape[3]
            yield slab

    def instances(self, task: Task) -> Tensor:
        """What was kept, (N, K, *S)."""
        found = torch.stack([torch.cat(kept, dim=3) for kept in self._kept])
        return found[..., 0] if task.spatial_dims == 2 else found
