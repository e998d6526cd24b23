"""Federations in one process, for benchmarks: rounds without FLARE, resumable, cached by configuration.

How sites train is a module of `inside/`: `SETTINGS`, and `train_round`, which
changes the models of a federation by one round. Models have names: `global`,
`local/SITE` (W_k), `personalized/SITE`. Several processes may train at once;
each takes a federation that no other has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from iopfl.base.locks import hold_one
from iopfl.core.networks import build_network
from iopfl.core.sites import Case, find_cases, labeled, split_cases
from iopfl.core.task import Task
from iopfl.core.training import LabeledImages, train
from iopfl.core.weights import Weights, read_weights, snapshot, write_weights

Models = dict[str, Weights]
TOGETHER = "all sites"
"""In place of a site: the images of all of them."""
_SEPARATOR = "|"


class Strategy(Protocol):
    """A module of `inside/`."""

    SETTINGS: Mapping[str, float]
    train_round: Callable[[Federation, Models, int], None]


@dataclass(frozen=True)
class Setup:
    """What a federation is trained on and for how long; with a strategy, all that its models depend on."""

    data: Path
    sites: tuple[str, ...]
    task: Task
    rounds: int
    seed: int
    cache: Path
    device: str = "cpu"

    def cases(self, site: str) -> dict[str, list[Case]]:
        """A site's labeled cases by split."""
        folder = self.data / site
        split = split_cases(find_cases(folder), self.task, site_folder=folder)
        return {part: labeled(cases) for part, cases in split.items()}

    def at(self, site: str) -> Setup:
        """One site by itself."""
        return replace(self, sites=(site,))

    def build(self, weights: Weights) -> nn.Module:
        """The task's network with these weights."""
        network = build_network(self.task)
        network.load_state_dict(weights)
        return network.to(self.device).eval()

    def folder(self, strategy: Strategy) -> Path:
        """Where its models are cached."""
        training = {key: value for key, value in self.task.to_dict().items() if key not in ("adaptation", "codes")}
        training["training"].pop("fine_tune_epochs")  # after the rounds
        who = [self.data.resolve().name, sorted(self.sites), strategy.__name__, dict(strategy.SETTINGS)]
        configuration = json.dumps([who, training, self.rounds, self.seed, 2], sort_keys=True)
        return self.cache / hashlib.sha256(configuration.encode()).hexdigest()[:16]


class Federation:
    """Trains at the sites of a setup."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.sites = setup.sites
        self._network = build_network(setup.task, seed=setup.seed)
        self.initial: Weights = snapshot(self._network)

    def train(self, site: str, weights: Weights, round_index: int, **options: Any) -> Weights:
        """One round of local training at a site, from these weights; `options` are those of `training.train`."""
        self._network.load_state_dict(weights)
        position = [*self.sites, TOGETHER].index(site)
        seed = (self.setup.seed * 1_000 + round_index) * 100 + position
        images = load_images(self.setup, "train", *(self.sites if site == TOGETHER else [site]))
        return train(self._network, images, seed=seed, device=self.setup.device, **options).weights

    @property
    def shares(self) -> list[int]:
        """Labeled images to train on of each site."""
        return [len(load_images(self.setup, "train", site)) for site in self.sites]


def train_federation(setup: Setup, strategy: Strategy) -> Models:
    """Train, go on where a run was stopped, or open what is finished."""
    folder = setup.folder(strategy)
    path = folder / "models.safetensors"
    done, models = _read(path)
    if done == setup.rounds:
        return models
    with hold_one([folder / "lock"]):
        done, models = _read(path)
        if done == setup.rounds:
            return models
        federation = Federation(setup)
        models = models or {"global": federation.initial}
        name = f"{strategy.__name__.rpartition('.')[2]} on {', '.join(setup.sites)}, seed {setup.seed}"
        with tqdm(total=setup.rounds, initial=done, desc=name, unit="round", disable=None) as bar:
            for round_index in range(done, setup.rounds):
                strategy.train_round(federation, models, round_index)
                _write(path, models, round_index + 1)
                bar.update()
    return models


_images: dict[tuple[str, ...], LabeledImages] = {}


def load_images(setup: Setup, part: str, *sites: str) -> LabeledImages:
    """A split's images of sites, read once a process."""
    key = (str(setup.data), json.dumps(setup.task.to_dict(), sort_keys=True), part, *sites)
    if key not in _images:
        cases = [case for site in sites for case in setup.cases(site)[part]]
        _images[key] = LabeledImages(cases, setup.task, minimum=1)
    return _images[key]


def _read(path: Path) -> tuple[int, Models]:
    if not path.is_file():
        return 0, {}
    flat, metadata = read_weights(path)
    models: Models = {}
    for key, value in flat.items():
        name, _, entry = key.partition(_SEPARATOR)
        models.setdefault(name, {})[entry] = value
    return int(metadata["rounds"]), models


def _write(path: Path, models: Models, rounds: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    flat: dict[str, torch.Tensor] = {
        f"{name}{_SEPARATOR}{entry}": value for name, weights in models.items() for entry, value in weights.items()
    }
    write_weights(path, flat, {"rounds": str(rounds)})
