"""Local training: one loop for the simulator and for the label server.

Instances (slices of a 2D task, windows of a 3D one) are drawn without
replacement until all were seen, so `local_steps = 0` covers a site's data once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    RandSpatialCropd,
    SpatialPadd,
    Transform,
)
from torch import Tensor, nn

from iopfl.base.errors import CancelledError, TooFewLabelsError, TrainingError
from iopfl.core.inference import predict
from iopfl.core.losses import build_segmentation_loss
from iopfl.core.metrics import region_dice
from iopfl.core.networks import build_network
from iopfl.core.precision import autocast
from iopfl.core.sites import Case
from iopfl.core.task import Task
from iopfl.core.transforms import Preprocessing, read_image, read_label, to_instances
from iopfl.core.weights import Weights, snapshot

Progress = Callable[[int, int, float], None]
"""Called after each step with steps done, steps in all, and the loss."""

_CACHED_PIXELS = 400_000_000
"""Preprocessed values kept in memory, 1.6 GB; images beyond are read anew when drawn."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave: a snapshot of the weights, optimizer steps, mean loss of the last fifth of them."""

    weights: Weights
    steps: int
    loss: float


class LabeledImages:
    """A site's labeled images, preprocessed and cached, bounded in memory.

    Raises:
        TooFewLabelsError: fewer labeled images than the task's minimum.
    """

    def __init__(self, cases: Sequence[Case], task: Task, *, minimum: int | None = None) -> None:
        minimum = task.training.min_labels if minimum is None else minimum
        cases = [case for case in cases if case.label is not None]
        if len(cases) < max(1, minimum):
            raise TooFewLabelsError(
                f"{len(cases)} labeled image(s) to train on, {task.name} needs {max(1, minimum)}: label more images"
            )
        self.task = task
        read = _ReadCase(task)
        values = sum(tensor.numel() for tensor in read(cases[0]).values())
        self._cases = CacheDataset(
            data=cases,
            transform=read,
            cache_num=max(1, _CACHED_PIXELS // values),
            num_workers=1,
            progress=False,
            hash_as_key=False,
        )
        # (case, slice) pairs of a 2D task; 3D windows are drawn at random, one per case.
        self.instances = [
            (case, position)
            for case in range(len(cases))
            for position in range(self[case]["image"].shape[-1] if task.spatial_dims == 2 else 1)
        ]

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """`image` (C, X, Y, Z) and `label` (K, X, Y, Z), on the network's grid."""
        return self._cases[index]

    def instance(self, index: int) -> dict[str, Tensor]:
        """`image` (in_channels, *S) and `label` (K, *S) of one instance."""
        case, position = self.instances[index]
        image, label = self[case]["image"], self[case]["label"]
        if self.task.spatial_dims == 3:
            return {"image": image, "label": label}
        reach = self.task.slices // 2
        around = image[..., max(0, position - reach) : position + reach + 1]
        middle = min(position, reach)
        return {"image": to_instances(around, self.task)[middle], "label": label[..., position]}


class _ReadCase(Transform):
    """A labeled case as tensors; a MONAI transform, since `CacheDataset` keeps the result of no other callable."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._prepare = Preprocessing(task)

    def __call__(self, case: Case) -> dict[str, Tensor]:
        if case.label is None:
            raise TrainingError(f"{case.stem}: expected a labeled image")
        image = read_image(case.image, self._task)
        label = read_label(case.label, self._task, like=image)
        return {"image": self._prepare(image), "label": self._prepare.label(label)}


def build_augmentation(task: Task, *, seed: int) -> Compose:
    """Windows of the task's size and, if the task augments, its symmetries, small affine, contrast and noise."""
    keys = ["image", "label"]
    steps: list[object] = [
        SpatialPadd(keys, task.size),
        RandSpatialCropd(keys, task.size, random_size=False),
    ]
    steps += [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in task.flips]
    if task.rotations and task.size[0] == task.size[1]:
        steps.append(RandRotate90d(keys, prob=0.75))
    if task.training.augment:
        turn = (0.2,) if task.spatial_dims == 2 else (0.2, 0.2, 0.2)  # radians
        scale = (0.1,) * task.spatial_dims
        steps += [
            RandAffined(keys, prob=0.3, rotate_range=turn, scale_range=scale, padding_mode="border"),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            RandGaussianNoised("image", prob=0.2, std=0.1),
        ]
    return Compose(steps).set_random_state(seed=seed)


def train(
    network: nn.Module,
    images: LabeledImages,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    steps: int | None = None,
    proximal_weight: float = 0.0,
    proximal_to: Weights | None = None,
    decay: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Train a network in place, from the weights it holds.

    Args:
        network: the task's.
        images: what to train on; they carry the task.
        seed: the seed of the order and augmentation. The same seed, data and weights give the same result on a CPU.
        device: where to train, in mixed precision where it has that (`precision.autocast`).
        steps: optimizer steps; None = the task's `local_steps`.
        proximal_weight: FedProx's mu (Li et al., MLSys 2020): pulls toward `proximal_to`.
        proximal_to: weights of the same network; None = those it starts from.
        decay: whether the learning rate falls to zero, linearly.
        progress: told after each step.
        cancelled: asked before each step.

    Raises:
        CancelledError: `cancelled` said so; the network is left as it then was.
        TrainingError: the loss became NaN or infinite.
    """
    settings = images.task.training
    steps = steps or settings.local_steps or -(-len(images.instances) // settings.batch_size)
    device = torch.device(device)
    network.to(device).train()
    toward = _references(network, proximal_to) if proximal_weight else []
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate, amsgrad=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps if decay else 1.0)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    loss_function = build_segmentation_loss()
    losses: list[float] = []
    for batch in _batches(images, seed=seed, steps=steps):
        if cancelled():
            raise CancelledError(f"training stopped after {len(losses)} of {steps} steps")
        with autocast(device, spatial_dims=images.task.spatial_dims):
            logits = network(batch["image"].to(device))
        loss = loss_function(logits.float(), batch["label"].to(device))
        if proximal_weight:
            pulls = zip(network.parameters(), toward, strict=True)
            loss = loss + proximal_weight / 2 * sum((now - then).square().sum() for now, then in pulls)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise TrainingError(f"the loss became {losses[-1]} at step {len(losses)}: lower training.learning_rate")
        if progress:
            progress(len(losses), steps, losses[-1])
    network.eval()
    return TrainingResult(snapshot(network), steps, float(np.mean(losses[-max(1, steps // 5) :])))


def fine_tune(
    weights: Weights,
    images: LabeledImages,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Weights:
    """A site's model after the task's `fine_tune_epochs` on its own images, the learning rate falling to zero.

    Rounds end at a high learning rate, where a model still moves from step to
    step; this brings it to rest at the site it is for.

    Raises:
        CancelledError: `cancelled` said so.
        TrainingError: the loss became NaN or infinite.
    """
    settings = images.task.training
    network = build_network(images.task)
    network.load_state_dict(weights)
    steps = settings.fine_tune_epochs * -(-len(images.instances) // settings.batch_size)
    if steps == 0:
        return snapshot(network)
    return train(
        network, images, seed=seed, device=device, steps=steps, decay=True, progress=progress, cancelled=cancelled
    ).weights


def _references(network: nn.Module, weights: Weights | None) -> list[Tensor]:
    """Copies of the network's parameters, or those of other weights in their order."""
    named = network.named_parameters()
    return [(weights[name].to(value) if weights else value.detach().clone()) for name, value in named]


def validate(network: nn.Module, images: LabeledImages, *, device: torch.device | str = "cpu") -> float:
    """Mean foreground Dice over images and regions, on the network's grid.

    For choosing between models of one site; figures that are reported come
    from `evaluation`, on the source's grid.
    """
    task = images.task
    scores = []
    for index in range(len(images)):
        case = images[index]
        predicted = predict(network, case["image"], task, device=device).argmax(0)
        scores.append(region_dice(predicted, case["label"].argmax(0), task).nanmean())
    return float(torch.stack(scores).nanmean())


def _batches(images: LabeledImages, *, seed: int, steps: int) -> Iterator[dict[str, Tensor]]:
    """`steps` batches of augmented instances; a new random order each time all were seen."""
    task = images.task
    augment = build_augmentation(task, seed=seed)
    order = np.random.RandomState(seed)
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < task.training.batch_size:
            queue.extend(order.permutation(len(images.instances)).tolist())
        drawn, queue = queue[: task.training.batch_size], queue[task.training.batch_size :]
        instances = [augment(images.instance(index)) for index in drawn]
        batch = {key: torch.stack([torch.as_tensor(item[key]) for item in instances]) for key in ("image", "label")}
        yield {key: getattr(value, "as_tensor", lambda value=value: value)() for key, value in batch.items()}
