"""Images of a site as methods see them and as the scorer does, and what a method costs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from comparing import Row
from federation import Setup
from iopfl.core.grids import Grid
from iopfl.core.inference import predict
from iopfl.core.metrics import region_dice
from iopfl.core.task import Task
from iopfl.core.transforms import Preprocessing, read_image, read_label
from iopfl.core.weights import Weights
from outside.scene import Method, Scene

COUNTED = 4
"""Images on which forward-equivalents are counted; counting slows a run, so that timing is another one."""


@dataclass(frozen=True)
class Images:
    """A site's labeled images.

    Attributes:
        stems: the stems of the cases.
        grids: the way to the network's grid and back, of each.
        volumes: on the network's grid, (C, X, Y, Z) each.
        classes: the labels on the images' own grid, class indices (X, Y, Z). For the scorer alone.
        shares: the labels on the network's grid, (K, X, Y, Z). For what is marked "(by labels)" alone.
    """

    stems: Sequence[str]
    grids: Sequence[Grid]
    volumes: Sequence[Tensor]
    classes: Sequence[Tensor]
    shares: Sequence[Tensor]

    @classmethod
    def load(cls, setup: Setup, site: str, part: str) -> Images:
        """Read them once a process."""
        key = (str(setup.data), json.dumps(setup.task.to_dict(), sort_keys=True), site, part)
        if key not in _loaded:
            _loaded[key] = _load(setup, site, part)
        return _loaded[key]

    def as_scene(self, experts: Sequence[Weights], setup: Setup) -> Scene:
        """What a method outside may see of them."""
        return Scene(setup.task, experts, self.volumes, seed=setup.seed, device=setup.device)


_loaded: dict[tuple[str, ...], Images] = {}


def _load(setup: Setup, site: str, part: str) -> Images:
    task, prepare = setup.task, Preprocessing(setup.task)
    cases = setup.cases(site)[part]
    stems, grids, volumes, classes, shares = [], [], [], [], []
    for case in cases:
        assert case.label is not None  # `cases` are labeled
        image = read_image(case.image, task)
        label = read_label(case.label, task, like=image)
        stems.append(case.stem)
        grids.append(Grid(image.shape[1:], image.affine, task))
        volumes.append(prepare(image))
        classes.append(label[0].as_tensor().to(torch.uint8))
        shares.append(prepare.label(label))
    return Images(stems, grids, volumes, classes, shares)


def score(probabilities: Sequence[Tensor], images: Images, task: Task) -> dict[str, float]:
    """Foreground Dice of each case on its own grid, mean over the task's regions."""
    found = {}
    classes = range(task.num_classes)
    for stem, answer, grid, truth in zip(images.stems, probabilities, images.grids, images.classes, strict=True):
        predicted = grid.to_mask([answer], classes).long()
        found[stem] = float(region_dice(predicted, truth.long(), task).nanmean())
    return found


def measure(method: Method, scene: Scene, images: Images, site: str, name: str) -> Row:
    """Run a method, then score it; time an image, and count forward-equivalents on the first few."""
    started = time.perf_counter()
    answers = method(scene)
    seconds = (time.perf_counter() - started) / len(scene.volumes)
    few = replace(scene, volumes=scene.volumes[:COUNTED])
    plain = scene.build(scene.experts[0])
    with FlopCounterMode(display=False) as forward:
        for volume in few.volumes:
            predict(plain, volume, scene.task, device=scene.device)
    with FlopCounterMode(display=False) as counter:
        method(few)
    return Row(
        site,
        site,
        scene.seed,
        name,
        score(answers.probabilities, images, scene.task),
        seconds,
        counter.get_total_flops() / forward.get_total_flops(),
        dict(zip(images.stems, answers.quality, strict=True)) if answers.quality else {},
    )
