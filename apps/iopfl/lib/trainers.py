"""The train task: what a clinician's own Train button does.

It makes the site's local model from the personalized one, apart from the
federation: it never enters the accumulation, and it serves only where the
site's validation labels favor it. A federation's rounds pass through here to `federation_rounds`.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from iopfl.base.errors import ConfigError, IOPFLError, TooFewLabelsError
from iopfl.base.files import write_bytes
from iopfl.core.predictor import LocalModel
from iopfl.core.task import Task
from iopfl.core.training import LabeledImages, train, validate
from iopfl.core.weights import hash_weights
from iopfl.labels.checked import split_labeled
from iopfl.labels.client_errors import as_client_error
from iopfl.labels.used import describe_used, summarize_used, write_used
from iopfl.lib.federation_rounds import ROUND_KEY, FederationRounds
from iopfl.lib.models import SiteModels
from iopfl.lib.settings import check_device

logger = logging.getLogger(__name__)

_EPOCHS = 20


class LocalTraining(TrainTask):
    """Trains the site's local model on the labels in the datastore."""

    def __init__(self, models: SiteModels, task: Task) -> None:
        super().__init__(description=f"{task.description or task.name}: train this site's own model")
        self._models = models
        self._task = task

    def config(self) -> dict[str, Any]:
        """What clients offer."""
        return {"epochs": _EPOCHS, "seed": 0, "device": self._models.settings.device}

    def stats(self) -> dict[str, Any]:
        """Progress of the training that runs, or the result of the last one; nothing, where that was damaged."""
        path = self._models.stats_file(self._task.name)
        try:
            stats = json.loads(path.read_bytes())
        except (OSError, ValueError):  # clients ask for it with everything else, and shall not fail for it
            return {}
        return stats if isinstance(stats, dict) else {}

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train; publish the best epoch as it comes, so that a stop loses at most the epoch at hand.

        Raises:
            MONAILabelException: too few labels, or a label that does not fit; the message says which.
        """
        try:
            if ROUND_KEY in request:
                return FederationRounds(self._models, self._task).carry_out(request, datastore)
            return self._train(request, datastore)
        except IOPFLError as error:
            raise as_client_error(error) from error

    def _train(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        task, name = self._task, self._task.name
        epochs = max(1, _read_number(request, "epochs") or _read_number(request, "max_epochs") or _EPOCHS)
        seed = _read_number(request, "seed")
        device = check_device(str(request.get("device") or self._models.settings.device))
        split = split_labeled(datastore, task)
        used = describe_used(datastore, (case.stem for case in split["train"] + split["validation"]))
        counts = f"{len(split['train'])} labeled images train, {len(split['validation'])} validate"
        print(f"{counts} (label versions {summarize_used(used)['digest']})", flush=True)  # noqa: T201
        if len(split["train"]) + len(split["validation"]) < task.training.min_labels:
            raise TooFewLabelsError(
                f"{len(split['train']) + len(split['validation'])} labeled image(s) to train on, {name} needs "
                f"{task.training.min_labels}: label more images (test images are never trained on)"
            )
        if not split["train"] or not split["validation"]:
            raise TooFewLabelsError(
                f"all {len(split['train']) + len(split['validation'])} labeled images are one patient's: "
                f"label another's too, to validate on (the patient is found in the file's name by {task.subject!r})"
            )
        images = LabeledImages(split["train"], task, minimum=1)
        held_out = LabeledImages(split["validation"], task, minimum=1)
        predictor = self._models.predictor(name)
        found = predictor.bank.find(predictor.site) if predictor.site else None
        global_entry = predictor.bank.find(None)
        start = found or global_entry
        if start is None or global_entry is None:
            raise TooFewLabelsError("the bank has no model to start from")
        network = predictor.bank.build(start[1])
        metrics = {"global": validate(predictor.bank.build(global_entry[1]), held_out, device=device)}
        if found is not None:
            metrics["personalized"] = validate(network, held_out, device=device)
        # Undefined where nothing is drawn in the labels: then there is nothing to choose by.
        metrics = {kind: dice for kind, dice in metrics.items() if not math.isnan(dice)}
        started, best, published = time.time(), -1.0, ""
        steps = -(-len(images.instances) // task.training.batch_size)
        for epoch in range(epochs):
            result = train(network, images, seed=seed + epoch, device=device, steps=steps)
            dice = validate(network, held_out, device=device)
            if dice > best or math.isnan(dice):
                best = 0.0 if math.isnan(dice) else dice
                own = {} if math.isnan(dice) else {"local": dice}
                self._models.publish_local(name, LocalModel(result.weights, {**metrics, **own}))
                published = hash_weights(result.weights)[:12]
                write_used(self._models.stats_file(name).with_suffix(".labels.json"), used, model=published)
            others = ", ".join(f"{kind} {value:.3f}" for kind, value in metrics.items())
            line = f"epoch {epoch + 1}/{epochs}: loss {result.loss:.4f}, validation Dice {dice:.3f}"
            print(f"{line} (best {best:.3f}; {others})", flush=True)  # noqa: T201  # read by GET /train/
            stats = _stats(epoch, epochs, started, best, 0.0 if math.isnan(dice) else dice, result.loss, metrics)
            stats["labels"] = summarize_used(used)
            write_bytes(self._models.stats_file(name), json.dumps(stats, allow_nan=False).encode())
        return {
            "task": name,
            "best_metric": best,
            "model": published,
            "metrics": metrics,
            "labels": summarize_used(used),
        }


def _read_number(request: Mapping[str, Any], key: str) -> int:
    """A whole number that a client typed; 0 where it left the field empty."""
    value = request.get(key) or 0
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: expected a whole number, given {value!r}") from error


def _stats(
    epoch: int, epochs: int, started: float, best: float, dice: float, loss: float, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """In the form that Slicer reads: numbers only, never None or NaN, and a total time once the training is over."""
    elapsed = time.strftime("%H:%M:%S", time.gmtime(time.time() - started))
    return {
        "best_metric": round(best, 4),
        "epoch": epoch + 1,
        "total_epochs": epochs,
        "total_time" if epoch + 1 == epochs else "current_time": elapsed,
        "start_ts": int(started),
        "train": {"loss": round(loss, 5)},
        "eval": {"key_metric_name": "val_mean_dice", "val_mean_dice": round(dice, 4), "best_metric": round(best, 4)},
        "others": {kind: round(value, 4) for kind, value in metrics.items()},
    }
