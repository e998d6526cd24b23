"""Tasks, weights and banks that fit into a blink, for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from iopfl.core.bank.bank import Model, ModelBank, Role, save_bank
from iopfl.core.bank.signing import Keyring
from iopfl.core.networks import build_network
from iopfl.core.task import Adaptation, Network, Task, Training
from iopfl.core.weights import Weights, snapshot

UNET = Network("UNet", {"channels": [4, 8, 8], "strides": [2, 2], "norm": "batch"})
DISK = Task(
    name="disk",
    labels={"disk": 1},
    spatial_dims=2,
    size=(32, 32),
    flips=(0, 1),
    network=UNET,
    training=Training(batch_size=4, learning_rate=1e-2, min_labels=2),
    adaptation=Adaptation(seconds=60.0),
)
STACK = replace(DISK, name="stack", slices=3)
BALL = Task(
    name="ball",
    labels={"front": 1, "back": 2},
    spatial_dims=3,
    size=(16, 16, 16),
    spacing=(1.0, 1.0, 1.0),
    flips=(0,),
    network=UNET,
    training=Training(batch_size=2, learning_rate=1e-2, min_labels=2),
    adaptation=Adaptation(seconds=60.0),
)
TASKS = (DISK, STACK, BALL)


def with_settings(task: Task, **changes: Any) -> Task:
    """The task with other adaptation settings."""
    return replace(task, adaptation=replace(task.adaptation, **changes))


def make_experts(task: Task, count: int = 3) -> list[Weights]:
    """Experts that differ in everything, normalization statistics included."""
    experts = []
    for seed in range(count):
        network = build_network(task, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for key, value in network.state_dict().items():
            if value.is_floating_point() and value.ndim == 1:
                noise = torch.rand(value.shape, generator=generator)
                value += 0.5 * (noise if key.endswith("running_var") else noise - 0.5)
        experts.append(snapshot(network))
    return experts


def make_volume(task: Task, *, depth: int = 3, seed: int = 0) -> torch.Tensor:
    """A prepared image (C, X, Y, Z), as large as the task's window."""
    shape = task.size if task.spatial_dims == 3 else (*task.size, depth)
    return torch.randn(task.channels, *shape, generator=torch.Generator().manual_seed(seed))


def make_models(task: Task, sites: tuple[str, ...] = ("north", "south"), **metrics: float) -> list[Model]:
    """A global model, and a personalized one for each site with these metrics."""
    weights = make_experts(task, len(sites) + 1)
    models = [Model("", Role.GLOBAL, 2, 30, {}, weights[0])]
    pairs = zip(sites, weights[1:], strict=True)
    return models + [Model(site, Role.PERSONALIZED, 2, 10, metrics, expert) for site, expert in pairs]


def make_bank(folder: Path, task: Task, **metrics: float) -> ModelBank:
    """A saved bank of `make_models`, signed with keys beside it."""
    keys = Keyring(folder.parent / "keys")
    return save_bank(folder, make_models(task, **metrics), task=task, federation="f", keys=keys)


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
