"""A network over a whole image, a few slices or windows at a time, as MONAI's sliding-window inferer blends them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from iopfl.core.task import Task
from iopfl.core.transforms import count_instances, from_instances, to_instances
from iopfl.core.views import View
from iopfl.core.work import Work

_BATCH = 4
"""Instances a forward pass; more gains nothing on two cores and costs memory."""
_OVERLAP = 0.25
_SLICES = 8
"""Of a volume's answer that are handed on at once."""


@torch.inference_mode()
def predict_slabs(
    network: nn.Module,
    volume: Tensor,
    task: Task,
    *,
    device: torch.device | str = "cpu",
    views: Sequence[View] = (View(),),
    zoom: float = 1.0,
    work: Work | None = None,
) -> Iterator[Tensor]:
    """Class probabilities of a prepared image, a few slices at a time, so that they never exist all at once.

    Args:
        network: logits (B, K, *S) of instances (B, in_channels, *S).
        volume: (C, X, Y, Z), as `Preprocessing` gives it.
        task: says how the volume becomes instances.
        device: where to run; CUDA runs in mixed precision.
        views: averaged over.
        zoom: magnification of what the network sees (`magnify`).
        work: is told of each pass.

    Returns:
        (K, X, Y, d) on the CPU, one after the other along Z.

    Raises:
        CancelledError: `work` was cancelled.
    """
    network.to(device).eval()

    def run(instances: Tensor) -> Tensor:
        return predict_instances(network, instances.to(device), task, views=views, zoom=zoom, work=work).cpu()

    if task.spatial_dims == 3:
        yield from _blend(volume, task, run)
        return
    for positions in torch.arange(count_instances(volume, task)).split(_BATCH):
        yield from_instances(run(to_instances(volume, task, positions)), task)


def predict(
    network: nn.Module,
    volume: Tensor,
    task: Task,
    *,
    device: torch.device | str = "cpu",
    views: Sequence[View] = (View(),),
    zoom: float = 1.0,
) -> Tensor:
    """All of `predict_slabs` at once, (K, X, Y, Z): for images that are small."""
    return torch.cat(list(predict_slabs(network, volume, task, device=device, views=views, zoom=zoom)), dim=3)


def predict_instances(
    network: nn.Module,
    instances: Tensor,
    task: Task,
    *,
    views: Sequence[View] = (View(),),
    zoom: float = 1.0,
    work: Work | None = None,
) -> Tensor:
    """Class probabilities of instances, averaged over views: (B, in_channels, *S) to (B, K, *S).

    An image larger than the task's window is run window by window.
    """
    infer = SlidingWindowInferer(task.size, sw_batch_size=_BATCH, overlap=_OVERLAP, mode="gaussian")
    device_type = instances.device.type

    def run(windows: Tensor) -> Tensor:
        total: Tensor | None = None
        for view in views:
            turned = view.apply(windows)
            seen = magnify(turned, task, zoom)
            if task.spatial_dims == 2:
                seen = seen.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device_type, enabled=device_type == "cuda"):
                logits = network(seen)
            probabilities = view.undo(_resize(logits.float().softmax(1), turned.shape[2:]))
            total = probabilities if total is None else total.add_(probabilities)
            if work is not None:
                work.count(len(windows))
        if total is None:
            raise ValueError("expected at least one view")
        return total / len(views) if len(views) > 1 else total

    return run(instances) if tuple(instances.shape[2:]) == task.size else infer(instances, run)


def count_windows(volume: Tensor, task: Task) -> int:
    """Passes that one view of a prepared image (C, X, Y, Z) takes."""
    edges = volume.shape[1 : 1 + task.spatial_dims]
    return count_instances(volume, task) * len(dense_patch_slices(edges, task.size, _intervals(edges, task)))


def _intervals(edges: Sequence[int], task: Task) -> list[int]:
    """From one window to the next, along each axis."""
    pairs = zip(edges, task.size, strict=True)
    return [size if size == edge else max(1, int(size * (1 - _OVERLAP))) for edge, size in pairs]


def _blend(volume: Tensor, task: Task, run: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Windows of a volume (C, X, Y, Z), weighted as MONAI does, layer after layer along Z: (K, X, Y, d) each.

    Of the sums, those of one layer alone are held.
    """
    edges, deep = tuple(volume.shape[1:]), task.size[2]
    if edges == task.size:
        yield run(volume[None])[0]
        return
    windows = sorted(
        dense_patch_slices(edges, task.size, _intervals(edges, task)),
        key=lambda window: [place.start for place in window[::-1]],
    )
    importance = compute_importance_map(task.size, mode="gaussian")
    layers = [list(layer) for _, layer in itertools.groupby(windows, key=lambda window: window[2].start)]
    ends = [layer[0][2].start for layer in layers[1:]] + [edges[2]]
    weights = torch.zeros(*edges[:2], deep)
    sums: Tensor | None = None
    for layer, end in zip(layers, ends, strict=True):
        for start in range(0, len(layer), _BATCH):
            places = layer[start : start + _BATCH]
            outputs = run(torch.stack([volume[(slice(None), *place)] for place in places]))
            if sums is None:
                sums = torch.zeros(outputs.shape[1], *edges[:2], deep)
            for place, output in zip(places, outputs, strict=True):
                sums[:, place[0], place[1]] += output.mul_(importance)
                weights[place[0], place[1]] += importance
        assert sums is not None  # a layer has a window
        done = end - layer[0][2].start
        for start in range(0, done, _SLICES):
            part = slice(start, min(start + _SLICES, done))
            yield sums[..., part] / weights[..., part]
        for held in (sums, weights):
            held[..., : deep - done] = held[..., done:].clone()
            held[..., deep - done :] = 0


def average(answers: Iterable[Iterator[Tensor]]) -> Iterator[Tensor]:
    """The mean of several answers, slab by slab."""
    for slabs in zip(*answers, strict=True):
        yield torch.stack(slabs).mean(0) if len(slabs) > 1 else slabs[0]


def magnify(instances: Tensor, task: Task, zoom: float) -> Tensor:
    """Instances (B, C, *S) as the network sees them magnified, in steps of 16 pixels, which every network takes.

    `zoom` is of an edge in 2D; in 3D its 2/3 power, so that a pass costs the same.
    """
    if zoom == 1.0:
        return instances
    factor = zoom ** (2 / task.spatial_dims)
    return _resize(instances, [16 * max(1, round(edge * factor / 16)) for edge in instances.shape[2:]])


def _resize(images: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(images.shape[2:]) == tuple(size):
        return images
    mode, smooth = ("bilinear", True) if images.ndim == 4 else ("trilinear", False)
    return torch.nn.functional.interpolate(images, size=tuple(size), mode=mode, antialias=smooth, align_corners=False)
