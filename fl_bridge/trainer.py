"""What trains at a site: the interface, and the trainer that runs in FLARE's own client process.

A trainer answers the same `Order` twice with the same answer: a lost reply, a
crash or a restart must neither train nor accumulate a round twice.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fl_bridge.exchange import Order
from fl_bridge.locks import hold_one
from iopfl.core.errors import ConfigError, IOPFLError, TooFewLabelsError, WeightsError
from iopfl.core.networks import build_network
from iopfl.core.personalization import PersonalizedModel
from iopfl.core.sites import Case, find_cases, labeled, split_cases
from iopfl.core.task import Task, read_task
from iopfl.core.training import LabeledImages, Progress, train, validate
from iopfl.core.weights import Weights, check_weights, read_weights, snapshot, write_bytes, write_weights

logger = logging.getLogger(__name__)

LOCAL, PERSONALIZED, ROUND, PROGRESS = "local.safetensors", "personalized.safetensors", "round.json", "progress.json"
_PROGRESS_SECONDS = 0.5


class SitsOutError(IOPFLError):
    """The site takes no part in this round, and that is no fault."""


@dataclass(frozen=True)
class SiteUpdate:
    """A site's answer to a round.

    Attributes:
        weights: W_k, its local model; only the difference to the global weights leaves the site.
        samples: instances (slices of a 2D task, images of a 3D one) it was trained on.
        metrics: `loss`, `seconds`, and validation Dice: `dice` of the personalized model, `dice_local`,
            `dice_global` of the weights the round began with. Missing where nothing could be validated.
    """

    weights: Weights
    samples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class SharedModel:
    """A site's personalized model on its way into the bank; `round_index` is the last accumulated."""

    weights: Weights
    round_index: int
    samples: int
    metrics: Mapping[str, float]


class SiteTrainer(Protocol):
    """What the executor asks of a site.

    Both methods raise an `IOPFLError` whose message may go to the consortium,
    `TooFewLabelsError` or `SitsOutError` to sit the round out, and
    `CancelledError` soon after `cancelled()` is true.
    """

    def train(self, global_weights: Weights, order: Order, *, cancelled: Callable[[], bool]) -> SiteUpdate:
        """Train one round from the global weights, and accumulate the personalized model; idempotent per order."""

    def personalized(self, global_weights: Weights, order: Order, *, cancelled: Callable[[], bool]) -> SharedModel:
        """The personalized model, validated beside the given global weights."""


class InProcessTrainer:
    """Trains on a site folder, in this process.

    State of each federation, in `state_folder/<federation>/`: `local.safetensors`
    (W_k and what it answers), `personalized.safetensors` (P_k), `round.json`
    (the finished answer), written in this order, each whole or not at all.
    """

    def __init__(
        self,
        site_folder: str,
        task: str,
        state_folder: str,
        device: str = "cpu",
        seed: int = 0,
        turns: str = "",
        at_once: int = 1,
    ) -> None:
        """Args:
        site_folder: images and labels.
        task: name of a built-in task, or path of a YAML file.
        state_folder: where the site keeps its models.
        device: where to train.
        seed: of training, together with the site's name and the round.
        turns: folder of lock files shared by the sites of one machine; empty = no waiting.
        at_once: sites that may train at the same time there.
        """
        self.site_folder = site_folder
        self.task = task
        self.state_folder = state_folder
        self.device = device
        self.seed = seed
        self.turns = turns
        self.at_once = at_once
        self._images: dict[tuple[Any, ...], LabeledImages] = {}

    def train(
        self, global_weights: Weights, order: Order, *, cancelled: Callable[[], bool] = lambda: False
    ) -> SiteUpdate:
        """Train one round; an order that was answered before is answered from the state.

        Raises:
            TooFewLabelsError: fewer labels than the task's minimum.
            WeightsError: the global weights are another network's.
            CancelledError: `cancelled` said so.
        """
        with self._open(order.federation, cancelled) as folder:
            _accumulate(folder, self._task.training.alpha)
            finished = _read_record(folder)
            kept = _read_local(folder)
            if kept is None or kept[1]["order"] != order.to_meta():
                kept = self._train(folder, global_weights, order, cancelled)
                _accumulate(folder, self._task.training.alpha)
            weights, about = kept
            if finished.get("order") != order.to_meta():
                personalized = PersonalizedModel.load(folder / PERSONALIZED)
                dice = {
                    "dice_global": self._validate(global_weights),
                    "dice_local": self._validate(weights),
                    "dice": self._validate(personalized.weights),
                }
                finished = {**about, "metrics": {**about["metrics"], **_finite(dice)}}
                write_bytes(folder / ROUND, json.dumps(finished).encode())
            return SiteUpdate(weights, finished["samples"], finished["metrics"])

    def personalized(
        self, global_weights: Weights, order: Order, *, cancelled: Callable[[], bool] = lambda: False
    ) -> SharedModel:
        """P_k, with the validation Dice of P_k, W_k and the given global weights.

        Raises:
            SitsOutError: the site has trained in no round of this federation.
        """
        with self._open(order.federation, cancelled) as folder:
            _accumulate(folder, self._task.training.alpha)
            kept = _read_local(folder)
            if kept is None:
                raise SitsOutError("has no personalized model: it trained in no round")
            personalized = PersonalizedModel.load(folder / PERSONALIZED)
            dice = {
                "dice_global": self._validate(global_weights),
                "dice_local": self._validate(kept[0]),
                "dice": self._validate(personalized.weights),
            }
            return SharedModel(personalized.weights, personalized.round_index, kept[1]["samples"], _finite(dice))

    @property
    def site(self) -> str:
        """The site's name: that of its folder."""
        return Path(self.site_folder).name

    @functools.cached_property
    def _task(self) -> Task:
        return read_task(self.task)

    @contextlib.contextmanager
    def _open(self, federation: str, cancelled: Callable[[], bool]) -> Iterator[Path]:
        """This federation's folder, held by one process at a time, and a turn on this machine."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", federation):
            raise ConfigError(f"expected a federation id of letters, digits, _ and -, given {federation!r}")
        folder = Path(self.state_folder) / federation
        turns = [Path(self.turns) / f"turn-{number}" for number in range(self.at_once)] if self.turns else []
        with contextlib.ExitStack() as stack:
            stack.enter_context(hold_one([folder / "lock"], cancelled=cancelled))
            if turns:
                stack.enter_context(hold_one(turns, cancelled=cancelled))
            for stray in folder.glob(".*"):  # of a write that a crash cut off
                stray.unlink()
            yield folder

    def _train(
        self, folder: Path, global_weights: Weights, order: Order, cancelled: Callable[[], bool]
    ) -> tuple[Weights, dict[str, Any]]:
        """Train, and keep the local model with what it answers."""
        images = self._load("train")
        network = build_network(self._task, seed=self.seed)
        check_weights(global_weights, snapshot(network), what=f"global weights of round {order.round_index}")
        network.load_state_dict(global_weights)
        started = time.monotonic()
        result = train(
            network,
            images,
            seed=_derive_seed(self.seed, self.site, order.round_index),
            device=self.device,
            progress=_report_to(folder / PROGRESS, order.round_index),
            cancelled=cancelled,
        )
        metrics = {"loss": result.loss, "seconds": round(time.monotonic() - started, 3)}
        about = {"order": order.to_meta(), "samples": len(images.instances), "metrics": _finite(metrics)}
        write_weights(folder / LOCAL, result.weights, {"about": json.dumps(about)})
        logger.info("%s: round %d: %d steps, loss %.3f", self.site, order.round_index, result.steps, result.loss)
        return result.weights, about

    def _validate(self, weights: Weights) -> float:
        """Mean validation Dice of a model, or NaN without validation labels."""
        try:
            images = self._load("validation")
        except TooFewLabelsError:
            return math.nan
        network = build_network(self._task)
        network.load_state_dict(weights)
        return validate(network, images, device=self.device)

    def _load(self, part: str) -> LabeledImages:
        """The labeled images of a split; read anew when images or labels have changed since."""
        folder = Path(self.site_folder)
        cases = labeled(split_cases(find_cases(folder), self._task, site_folder=folder)[part])
        key = (part, *((case.stem, _stamp(case)) for case in cases))
        if key not in self._images:
            self._images = {other: images for other, images in self._images.items() if other[0] != part}
            self._images[key] = LabeledImages(cases, self._task, minimum=1 if part == "validation" else None)
        return self._images[key]


def _accumulate(folder: Path, alpha: float) -> None:
    """Bring P_k up to the local model that is kept; does nothing where it is."""
    kept = _read_local(folder)
    if kept is None:
        return
    weights, round_index, path = kept[0], kept[1]["order"]["round_index"], folder / PERSONALIZED
    if not path.is_file():
        PersonalizedModel.start(weights, round_index=round_index).save(path)
        return
    before = PersonalizedModel.load(path)
    after = before.accumulate(weights, round_index=round_index, alpha=alpha)
    if after is not before:
        after.save(path)


def _read_local(folder: Path) -> tuple[Weights, dict[str, Any]] | None:
    """The local model that is kept and what it answers; None where there is none."""
    if not (folder / LOCAL).is_file():
        return None
    weights, metadata = read_weights(folder / LOCAL)
    if "about" not in metadata:
        raise WeightsError(f"{LOCAL}: expected a local model of a round, found no order: move the file away")
    return weights, json.loads(metadata["about"])


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / ROUND
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _report_to(path: Path, round_index: int) -> Progress:
    """A progress function that writes a small file now and then."""
    last = -math.inf

    def report(step: int, steps: int, loss: float) -> None:
        nonlocal last
        if step == steps or time.monotonic() - last > _PROGRESS_SECONDS:
            last = time.monotonic()
            values = {"round_index": round_index, "step": step, "steps": steps, "loss": loss}
            write_bytes(path, json.dumps(values).encode())

    return report


def _derive_seed(seed: int, site: str, round_index: int) -> int:
    """Seed of one site's training in one round: the same wherever and whenever it is run."""
    digest = hashlib.sha256(f"{seed}/{site}/{round_index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") // 2


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _stamp(case: Case) -> tuple[int, ...]:
    files = [path for path in (case.image, case.label) if path is not None]
    return tuple(stat for path in files for stat in (path.stat().st_mtime_ns, path.stat().st_size))
