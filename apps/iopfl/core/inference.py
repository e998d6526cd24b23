"""A network over a whole image, through MONAI's sliding-window inferer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from iopfl.core.task import Task
from iopfl.core.transforms import from_instances, to_instances
from iopfl.core.views import View

_BATCH = 4
"""Instances a forward pass; more gains nothing on two cores and costs memory."""


@torch.inference_mode()
def predict(
    network: nn.Module,
    volume: Tensor,
    task: Task,
    *,
    device: torch.device | str = "cpu",
    views: Sequence[View] = (View(),),
    zoom: float = 1.0,
) -> Tensor:
    """Class probabilities of a prepared image.

    Args:
        network: logits (B, K, *S) of instances (B, in_channels, *S).
        volume: (C, X, Y, Z), as `Preprocessing` gives it.
        task: says how the volume becomes instances.
        device: where to run; CUDA runs in mixed precision.
        views: averaged over.
        zoom: magnification of what the network sees (`magnify`).

    Returns:
        (K, X, Y, Z) on the CPU.
    """
    network.to(device).eval()
    instances = to_instances(volume, task)
    batches = [
        predict_instances(network, batch.to(device), task, views=views, zoom=zoom).cpu()
        for batch in instances.split(_BATCH)
    ]
    return from_instances(torch.cat(batches), task)


def predict_instances(
    network: nn.Module, instances: Tensor, task: Task, *, views: Sequence[View] = (View(),), zoom: float = 1.0
) -> Tensor:
    """Class probabilities of instances, averaged over views: (B, in_channels, *S) to (B, K, *S).

    An image larger than the task's window is run window by window.
    """
    infer = SlidingWindowInferer(task.size, sw_batch_size=_BATCH, overlap=0.25, mode="gaussian")
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
            total = probabilities if total is None else total + probabilities
        if total is None:
            raise ValueError("expected at least one view")
        return total / len(views)

    return run(instances) if tuple(instances.shape[2:]) == task.size else infer(instances, run)


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
