"""The published outside personalization, as a baseline (IOP-FL, section III-C, and the authors' public code).

Written from a description, repaired only where the public code is plainly
wrong: every expert in every layer, every router trained, no label seen, any
device, the last epoch rather than the best by test Dice. Offline and
transductive: all images of the site, ten epochs, then the same images are
segmented. Known to depend on batch size and to collapse at times; it is here
to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from iopfl.base.errors import CancelledError
from iopfl.core.inference import predict
from iopfl.core.losses import boundary
from iopfl.core.routers import SampleRouter
from iopfl.core.routing import RoutedNetwork, route_network
from iopfl.core.task import Task
from iopfl.core.transforms import to_instances, to_windows
from iopfl.core.views import View
from iopfl.core.weights import Weights

EPOCHS = 10
BATCH_SIZE = 4
LEARNING_RATE = 1e-3
ENTROPY_WEIGHT = 10.0
CONSISTENCY_WEIGHT = 0.1
SHAPE_FACTOR = 1e-6
SHAPE_KERNEL = 21
NOISE_STD = 0.5


@torch.inference_mode(False)  # the caller may be inside it, and it forbids gradients
def adapt_published(
    network: nn.Module,
    experts: Sequence[Weights],
    volumes: Sequence[Tensor],
    task: Task,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> RoutedNetwork:
    """Adapt routers and affine parameters to all images of a site.

    Args:
        network: the task's; it is copied.
        experts: the bank's, the global model first.
        volumes: prepared images, (C, X, Y, Z) each; no labels.
        task: says how they become instances.
        seed: the seed of router weights, dropout, noise and order.
        device: where to run.
        progress: told epochs done and epochs in all.
        cancelled: asked before each step.

    Raises:
        CancelledError: `cancelled` said so.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        routed = configure(route_network(network, experts, router="sample", normalization=False)).to(device)
        optimizer = torch.optim.Adam(collect_parameters(routed), lr=LEARNING_RATE)
        # Windows, as volumes of one site differ in size and could not share a batch.
        images = [to_windows(to_instances(volume, task), task) for volume in volumes]
        positions = [(v, i) for v, windows in enumerate(images) for i in range(len(windows))]
        for epoch in range(EPOCHS):
            order = torch.randperm(len(positions)).tolist()
            for start in range(0, len(order), BATCH_SIZE):
                if cancelled():
                    raise CancelledError(f"adaptation stopped in epoch {epoch + 1} of {EPOCHS}")
                drawn = [positions[index] for index in order[start : start + BATCH_SIZE]]
                _step(routed, optimizer, torch.stack([images[v][i] for v, i in drawn]).to(device))
            if progress:
                progress(epoch + 1, EPOCHS)
    return routed


def configure(routed: RoutedNetwork) -> RoutedNetwork:
    """Normalize by the batch's own statistics, train routers and affine parameters, leave dropout on."""
    routed.requires_grad_(False)
    for module in routed.modules():
        if isinstance(module, SampleRouter):
            module.requires_grad_(True)
            module.noisy = True
        if isinstance(module, _BatchNorm):
            module.requires_grad_(True)
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    return routed


def collect_parameters(routed: RoutedNetwork) -> list[nn.Parameter]:
    """What `configure` left trainable."""
    return [parameter for parameter in routed.parameters() if parameter.requires_grad]


def predict_published(
    routed: RoutedNetwork, volume: Tensor, task: Task, *, seed: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Class probabilities (K, X, Y, Z) of a prepared image; dropout is on, so the seed matters."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return predict(routed, volume, task, device=device)


def published_loss(noisy: Tensor, clean: Tensor) -> Tensor:
    """Entropy, consistency and shape constraint of logits (B, K, *S) of the noisy view, mapped back, and the clean one.

    The entropy is summed over the batch, as published.
    """
    first, second = noisy.softmax(1), clean.softmax(1)
    entropy = -(second * clean.log_softmax(1)).sum(1).sum(0).mean()
    consistency = (first - second).square().mean()
    shape = (SHAPE_FACTOR * boundary(1 - second[:, 0], kernel_size=SHAPE_KERNEL)).norm()
    return ENTROPY_WEIGHT * entropy + CONSISTENCY_WEIGHT * consistency + shape


@torch.enable_grad()
def _step(routed: RoutedNetwork, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    flips = tuple(axis for axis in range(images.ndim - 2) if torch.rand(()) < 0.5)
    square = images.shape[2] == images.shape[3]
    view = View(flips, int(torch.randint(4, ())) if square else 0)
    noisy = view.undo(routed(view.apply(images + NOISE_STD * torch.randn_like(images))))
    loss = published_loss(noisy, routed(images))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
