"""A site's part in a federation's rounds: train from the global weights, accumulate P_k, answer once.

A site answers the same `Order` twice with the same answer: a lost reply, a
crash or a restart must neither train nor accumulate a round twice. The same
class runs in the simulator's client processes and in a label server.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iopfl.base.errors import SitsOutError, TooFewLabelsError
from iopfl.base.files import write_bytes
from iopfl.base.locks import hold_one
from iopfl.base.reasons import Reason
from iopfl.base.stamps import find_stamp
from iopfl.core.networks import build_network
from iopfl.core.order import Order, SharedModel, SiteUpdate
from iopfl.core.personalization import PersonalizedModel
from iopfl.core.round_files import (
    LOCAL,
    PERSONALIZED,
    PROGRESS,
    ROUND,
    SHARED,
    accumulate,
    federation_folder,
    read_local,
    read_record,
    read_shared,
)
from iopfl.core.sites import Case, labeled
from iopfl.core.task import Task
from iopfl.core.training import LabeledImages, Progress, fine_tune, train, validate
from iopfl.core.weights import Weights, check_weights, complete, floating, hash_weights, write_weights

logger = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.5


class SiteRounds:
    """A site's models in the federations it takes part in.

    State of each federation, in `folder/<federation>/`: `local.safetensors`
    (W_k and what it answers), `personalized.safetensors` (P_k), `round.json`
    (the finished answer), written in this order, each whole or not at all; and
    `shared.safetensors`, P_k fine-tuned, once it was asked for.
    """

    def __init__(
        self,
        folder: Path,
        task: Task,
        *,
        site: str,
        cases: Callable[[], Mapping[str, Sequence[Case]]],
        device: str = "cpu",
        seed: int = 0,
        turns: Sequence[Path] = (),
    ) -> None:
        """Args:
        folder: the state folder.
        task: what is segmented.
        site: the site's name.
        cases: the site's images as they are now, by split (`sites.split_cases`).
        device: where to train.
        seed: the seed of training, together with the site's name and the round.
        turns: lock files shared by the sites of one machine, one of which is held while training.
        """
        self._folder = folder
        self._task = task
        self._site = site
        self._cases = cases
        self._device = device
        self._seed = seed
        self._turns = list(turns)
        self._images: dict[tuple[Any, ...], LabeledImages] = {}

    def train(
        self,
        global_weights: Weights,
        order: Order,
        *,
        min_new_labels: int = 0,
        proximal_weight: float = 0.0,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> SiteUpdate:
        """Train one round; an order that was answered before is answered from the state.

        Args:
            global_weights: W^t.
            order: the round.
            min_new_labels: labels drawn or changed since the last round trained here, without which it is sat out.
            proximal_weight: the weight of FedProx's term (`training.train`).
            cancelled: asked often.

        Raises:
            TooFewLabelsError: fewer labels than the task's minimum.
            SitsOutError: fewer new labels than asked, or not a round after the last one of its federation.
            WeightsError: the global weights are another network's.
            CancelledError: `cancelled` said so.
        """
        global_weights = self._complete(global_weights, order)
        with self._open(order.federation, cancelled) as folder:
            accumulate(folder, self._task.training.alpha)
            finished = read_record(folder)
            kept = read_local(folder)
            if kept is None or kept[1]["order"] != order.to_meta():
                if kept and order.round_index <= kept[1]["order"]["round_index"]:
                    raise SitsOutError(
                        f"has trained round {order.round_index + 1} or a later one before", reason=Reason.OLD_ROUND
                    )
                self._check_labels(kept[1].get("labels", []) if kept else [], min_new_labels)
                kept = self._train(folder, global_weights, order, proximal_weight, cancelled)
                accumulate(folder, self._task.training.alpha)
            weights, about = kept
            if finished.get("order") != order.to_meta():
                personalized = PersonalizedModel.load(folder / PERSONALIZED)
                dice = self._validate_all(global_weights, weights, personalized.weights)
                finished = {
                    "order": about["order"],
                    "samples": about["samples"],
                    "metrics": {**about["metrics"], **dice},
                }
                write_bytes(folder / ROUND, json.dumps(finished).encode())
            return SiteUpdate(weights, finished["samples"], finished["metrics"])

    def personalized(
        self, global_weights: Weights, order: Order, *, cancelled: Callable[[], bool] = lambda: False
    ) -> SharedModel:
        """P_k, fine-tuned if the site's validation labels favor that, and its validation Dice beside W_k's and W^t's.

        The same P_k is answered with the same weights and figures, whatever the order says: with other global weights
        each time, a server could have them scored on the site's images without end.

        Raises:
            SitsOutError: the site has trained in no round of this federation.
            CancelledError: `cancelled` said so.
        """
        global_weights = self._complete(global_weights, order)
        with self._open(order.federation, cancelled) as folder:
            accumulate(folder, self._task.training.alpha)
            kept = read_local(folder)
            if kept is None:
                raise SitsOutError(Reason.NO_MODEL, reason=Reason.NO_MODEL)
            personalized = PersonalizedModel.load(folder / PERSONALIZED)
            content = hash_weights(personalized.weights)
            shared = read_shared(folder, content)
            if shared is None:
                weights = self._fine_tune(folder, personalized, cancelled)
                dice = self._validate_all(global_weights, kept[0], weights)
                shared = SharedModel(weights, personalized.round_index, kept[1]["samples"], dice)
                about = {"round_index": shared.round_index, "samples": shared.samples, "metrics": dice}
                write_weights(folder / SHARED, weights, {"content": content, "about": json.dumps(about)})
            return shared

    def _fine_tune(self, folder: Path, personalized: PersonalizedModel, cancelled: Callable[[], bool]) -> Weights:
        """P_k, or P_k fine-tuned where its validation Dice is no lower."""
        weights, round_index = personalized.weights, personalized.round_index
        with contextlib.suppress(TooFewLabelsError):  # labels were taken back since
            seed = _derive_seed(self._seed, f"{self._site}/fine-tune", round_index)
            report = _report_to(folder / PROGRESS, round_index)
            images = self._load("train")
            tuned = fine_tune(weights, images, seed=seed, device=self._device, progress=report, cancelled=cancelled)
            if not self._validate(tuned) < self._validate(weights):  # NaN where there is nothing to validate on
                weights = tuned
        return weights

    def _complete(self, global_weights: Weights, order: Order) -> Weights:
        """Global weights with the integer buffers that do not travel."""
        reference = build_network(self._task, seed=self._seed).state_dict()
        check_weights(
            floating(global_weights), floating(reference), what=f"global weights of round {order.round_index}"
        )
        return complete(floating(global_weights), reference)

    def _check_labels(self, trained_on: Sequence[str], min_new: int) -> None:
        """Count the labels to train on, and those among them that the last round here had not, or had otherwise."""
        marks, needed = self._label_marks(), max(1, self._task.training.min_labels)
        if len(marks) < needed:
            raise TooFewLabelsError(f"waiting for labels ({len(marks)} of {needed})")
        new = len(set(marks) - set(trained_on))
        if new < min_new:
            raise SitsOutError(f"waiting for new labels ({new} of {min_new})", reason=Reason.NO_NEW_LABELS)

    def _label_marks(self) -> list[str]:
        """One mark a label to train on; it changes with the label, and names nothing."""
        cases = labeled(self._cases()["train"])
        return sorted(hashlib.sha256(f"{case.stem} {_stamp(case)}".encode()).hexdigest()[:16] for case in cases)

    @contextlib.contextmanager
    def _open(self, federation: str, cancelled: Callable[[], bool]) -> Iterator[Path]:
        """This federation's folder, held by one process at a time, and a turn on this machine."""
        folder = federation_folder(self._folder, federation)
        with contextlib.ExitStack() as stack:
            stack.enter_context(hold_one([folder / "lock"], cancelled=cancelled))
            if self._turns:
                stack.enter_context(hold_one(self._turns, cancelled=cancelled))
            for stray in folder.glob(".*"):  # of a write that a crash cut off
                stray.unlink()
            yield folder

    def _train(
        self,
        folder: Path,
        global_weights: Weights,
        order: Order,
        proximal_weight: float,
        cancelled: Callable[[], bool],
    ) -> tuple[Weights, dict[str, Any]]:
        """Train, and keep the local model with what it answers."""
        marks = self._label_marks()
        images = self._load("train")
        network = build_network(self._task, seed=self._seed)
        network.load_state_dict(global_weights)
        started = time.monotonic()
        result = train(
            network,
            images,
            seed=_derive_seed(self._seed, self._site, order.round_index),
            device=self._device,
            proximal_weight=proximal_weight,
            progress=_report_to(folder / PROGRESS, order.round_index),
            cancelled=cancelled,
        )
        metrics = {"loss": result.loss, "seconds": round(time.monotonic() - started, 3)}
        about = {
            "order": order.to_meta(),
            "samples": len(images.instances),
            "metrics": _finite(metrics),
            "labels": marks,
        }
        write_weights(folder / LOCAL, result.weights, {"about": json.dumps(about)})
        logger.info("%s: round %d: %d steps, loss %.3f", self._site, order.round_index, result.steps, result.loss)
        return result.weights, about

    def _validate_all(self, global_weights: Weights, local: Weights, personalized: Weights) -> dict[str, float]:
        dice = {
            "dice_global": self._validate(global_weights),
            "dice_local": self._validate(local),
            "dice": self._validate(personalized),
        }
        return _finite(dice)

    def _validate(self, weights: Weights) -> float:
        """Mean validation Dice of a model, or NaN without validation labels."""
        try:
            images = self._load("validation")
        except TooFewLabelsError:
            return math.nan
        network = build_network(self._task)
        network.load_state_dict(weights)
        return validate(network, images, device=self._device)

    def _load(self, part: str) -> LabeledImages:
        """The labeled images of a split; read anew when images or labels have changed since."""
        cases = labeled(self._cases()[part])
        key = (part, *((case.stem, _stamp(case)) for case in cases))
        if key not in self._images:
            self._images = {other: images for other, images in self._images.items() if other[0] != part}
            self._images[key] = LabeledImages(cases, self._task, minimum=1 if part == "validation" else None)
        return self._images[key]


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
    return tuple(number for path in files if (stamp := find_stamp(path)) for number in stamp.kept)
