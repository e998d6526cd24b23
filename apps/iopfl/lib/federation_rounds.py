"""A federation's rounds in the label server: what the bridge puts in, the training of it, and what came of it.

In the state folder, per task and federation: what `core.site_rounds.SiteRounds` keeps, and of each kind of order
(`train`, `share`) the global weights given (`train-global.safetensors`) and the refusal or the answer, if any.
MONAI Label has one training slot. A round takes it when it is free, and gives it up to a clinician.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import tasks as background_tasks
from safetensors import SafetensorError, safe_open

from iopfl.base.errors import ConfigError, SitsOutError, TooFewLabelsError, WeightsError
from iopfl.base.files import write_bytes
from iopfl.base.reasons import Reason, find_reason
from iopfl.core.networks import build_network
from iopfl.core.order import Order
from iopfl.core.round_files import LOCAL, PROGRESS, SHARED, federation_folder, read_answer
from iopfl.core.site_rounds import SiteRounds
from iopfl.core.sites import Case
from iopfl.core.task import Task
from iopfl.core.weights import check_weights, floating, read_weights, write_weights
from iopfl.labels.checked import split_labeled
from iopfl.labels.used import describe_used, summarize_used, write_used
from iopfl.lib.federations import check_federation
from iopfl.lib.models import SiteModels

logger = logging.getLogger(__name__)

TRAIN, SHARE = "train", "share"
KINDS = (TRAIN, SHARE)
ROUND_KEY = "round"
"""Of a training's request: the order that it carries out. A clinician's training has none."""

_OPTIONS: Mapping[str, tuple[type, ...]] = {
    "seed": (int,),
    "min_new_labels": (int,),
    "proximal_weight": (int, float),
}
_LARGEST = 2**63
_TAKING_IN = threading.Lock()

_UNFINISHED = ("SUBMITTED", "RUNNING")


class FederationRounds:
    """The rounds of one task's federations at this site."""

    def __init__(self, models: SiteModels, task: Task) -> None:
        self._models = models
        self.task = task

    @property
    def folder(self) -> Path:
        """Where this task's federations are kept."""
        return self._models.settings.state / "rounds" / self.task.name

    def check_wanted(self, order: Order, kind: str) -> None:
        """Check that global weights may come, before they do.

        Raises:
            FederationsError: of a federation that this site takes no part in, or one too many.
            SitsOutError: asked for a personalized model, where none was trained.
            ConfigError: no kind of order.
        """
        self._file(order, kind, "global.safetensors")
        if kind == SHARE and not self._has_model(order):
            raise SitsOutError(Reason.NO_MODEL, reason=Reason.NO_MODEL)
        settings = self._models.settings
        check_federation(self.folder, order.federation, known=settings.federations, limit=settings.max_federations)

    def put_global(self, order: Order, kind: str, file: Path) -> None:
        """Take in the global weights of a round, once they were checked; the same twice is no fault.

        Raises:
            WeightsError: not the weights of this task's network.
            IOPFLError: as `check_wanted`.
        """
        weights, _ = read_weights(file)
        reference = build_network(self.task).state_dict()
        check_weights(floating(weights), floating(reference), what=f"global weights of round {order.round_index}")
        with _TAKING_IN:
            self.check_wanted(order, kind)
            self._file(order, kind, "").parent.mkdir(parents=True, exist_ok=True)
        write_weights(self._file(order, kind, "global.safetensors"), weights, {"order": json.dumps(order.to_meta())})

    def start(self, order: Order, kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Start the training of a round, unless it runs or is answered; an older round's is stopped first.

        Args:
            order: whose global weights are here.
            kind: of `KINDS`.
            options: those of `_OPTIONS`; others are refused.

        Returns:
            As `describe`; `status` is "busy" when a clinician's training has the slot.

        Raises:
            ConfigError: the order's global weights are not here, or an option is none.
        """
        options = _check_options(options)
        now = self.describe(order, kind)
        if now["status"] in ("training", "answered") or (kind == SHARE and not self._has_model(order)):
            return now
        if now["status"] == "missing":
            raise ConfigError(f"round {order.round_index}: expected its global weights first: put them")
        running = _running()
        if running is not None and ROUND_KEY in running["request"]:
            AsyncTask.stop("train")  # a round that the federation has left behind
        self._file(order, kind, "refusal.json").unlink(missing_ok=True)
        request = {"model": self.task.name, ROUND_KEY: {**options, **order.to_meta(), "kind": kind}}
        started, _ = AsyncTask.run("train", request=request)
        return self.describe(order, kind) if started else {**now, "status": "busy"}

    def stop(self, order: Order, kind: str) -> None:
        """Stop the training of this round; nobody else's."""
        running = _running()
        if running is not None and _is_of(running, order, kind):
            AsyncTask.stop("train")

    def describe(self, order: Order, kind: str) -> dict[str, Any]:
        """What has become of an order.

        Returns:
            `status`: missing (its global weights), ready, training, answered, sits out, failed, or stopped (by a
            clinician or an administrator); with it `reason` for people here, `says` for the federation
            (`Reason`), `progress`, or `samples`, `metrics` and
            `personalized_round`.
        """
        answer = self._read_answer(order, kind)
        if answer is not None:
            return {"status": "answered", **answer}
        if kind == SHARE and not self._has_model(order):
            return {"status": "sits out", "reason": Reason.NO_MODEL, "says": Reason.NO_MODEL}
        if _order_given(self._file(order, kind, "global.safetensors")) != order:
            return {"status": "missing"}
        last = next((task for task in reversed(background_tasks("train")) if _is_of(task, order, kind)), None)
        if last is not None and last["status"] in _UNFINISHED:
            return {"status": "training", "id": last["id"], "progress": self._read_progress(order)}
        refusal = self._read_json(order, kind, "refusal")
        if refusal.get("order") == order.to_meta():
            says = Reason.read(refusal.get("says"))
            return {"status": "sits out" if says.sits_out else "failed", "reason": refusal["reason"], "says": says}
        if last is not None and last["status"] == "STOPPED":
            return {"status": "stopped", "reason": "the training was stopped at the site"}
        if last is not None:
            return {"status": "failed", "reason": "the training ended early; the site's own log has the details"}
        return {"status": "ready"}

    def answer_file(self, order: Order, kind: str) -> Path:
        """The weights that answer an order: W_k of a round, or P_k as it is shared.

        Raises:
            WeightsError: it is not answered.
        """
        if self._read_answer(order, kind) is None:
            raise WeightsError(f"round {order.round_index}: expected an answered order, this one is not: start it")
        return federation_folder(self.folder, order.federation) / (LOCAL if kind == TRAIN else SHARED)

    def carry_out(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Do what an order asks, in the training's process; a refusal is kept for the bridge to read.

        Raises:
            IOPFLError: the round failed; sitting out is no failure.
        """
        about = request[ROUND_KEY]
        order, kind = Order.from_meta(about), about["kind"]
        try:
            result = self._answer(order, kind, about, datastore)
        except Exception as error:
            says = find_reason(error)
            reason = str(error) if says.sits_out else says  # an error's own words may name an image
            kept = {"order": order.to_meta(), "reason": reason, "says": says}
            write_bytes(self._file(order, kind, "refusal.json"), json.dumps(kept).encode())
            if not says.sits_out:
                raise
            print(reason, flush=True)  # noqa: T201  # read by GET /train/
            return {"task": self.task.name, "sits_out": reason}
        return {"task": self.task.name, **result}

    def last(self) -> list[dict[str, Any]]:
        """What each federation asked for last, and what became of it, for people."""
        found = []
        for path in sorted(self.folder.glob("*/*-global.safetensors")):
            kind, order = path.name.split("-")[0], _order_given(path)
            if order is None or kind not in KINDS:
                continue
            state = self.describe(order, kind)
            state.pop("metrics", None)
            found.append({"federation": order.federation, "round": order.round_index + 1, "kind": kind, **state})
        return found

    def _answer(self, order: Order, kind: str, about: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        weights, metadata = read_weights(self._file(order, kind, "global.safetensors"))
        if json.loads(metadata.get("order", "{}")) != order.to_meta():
            raise ConfigError(f"round {order.round_index}: its global weights are not here any more")
        split = functools.cache(functools.partial(self._split, datastore))  # what is said to be used is used
        rounds = SiteRounds(
            self.folder,
            self.task,
            site=self._models.site or "",
            cases=split,
            device=self._models.settings.device,
            seed=int(about.get("seed", 0)),
        )
        if kind == TRAIN:
            used = describe_used(datastore, (case.stem for case in [*split()["train"], *split()["validation"]]))
            update = rounds.train(
                weights,
                order,
                min_new_labels=int(about.get("min_new_labels", 0)),
                proximal_weight=float(about.get("proximal_weight", 0.0)),
            )
            write_used(self._file(order, kind, "labels.json"), used, order=order.to_meta())
            return {"samples": update.samples, "metrics": dict(update.metrics), "labels": summarize_used(used)}
        shared = rounds.personalized(weights, order)
        answer = {"samples": shared.samples, "metrics": dict(shared.metrics), "personalized_round": shared.round_index}
        kept = {"order": order.to_meta(), **answer}
        write_bytes(self._file(order, kind, "answer.json"), json.dumps(kept).encode())
        return answer

    def _has_model(self, order: Order) -> bool:
        """Whether this site trained in a round of a federation."""
        return (federation_folder(self.folder, order.federation) / LOCAL).is_file()

    def _split(self, datastore: Datastore) -> Mapping[str, Sequence[Case]]:
        try:
            return split_labeled(datastore, self.task)
        except TooFewLabelsError:
            return {"train": [], "validation": []}

    def _read_answer(self, order: Order, kind: str) -> dict[str, Any] | None:
        folder = federation_folder(self.folder, order.federation)
        if not (folder / (LOCAL if kind == TRAIN else SHARED)).is_file():
            return None
        if kind == TRAIN:
            answer = read_answer(folder, order)
        else:
            kept = self._read_json(order, kind, "answer")
            answer = kept if kept.get("order") == order.to_meta() else None
        return {key: value for key, value in answer.items() if key != "order"} if answer else None

    def _read_progress(self, order: Order) -> dict[str, Any]:
        try:
            progress = json.loads((federation_folder(self.folder, order.federation) / PROGRESS).read_bytes())
        except (OSError, ValueError):
            return {}
        return progress if progress.get("round_index") == order.round_index else {}

    def _read_json(self, order: Order, kind: str, what: str) -> dict[str, Any]:
        try:
            kept = json.loads(self._file(order, kind, f"{what}.json").read_bytes())
        except (FileNotFoundError, ValueError):  # a damaged one is as none: the round is carried out again
            return {}
        return kept if isinstance(kept, dict) else {}

    def _file(self, order: Order, kind: str, name: str) -> Path:
        if kind not in KINDS:
            raise ConfigError(f"no kind of order {kind!r}: expected {' or '.join(KINDS)}")
        return federation_folder(self.folder, order.federation) / f"{kind}-{name}"


def _check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a bridge says of a training, which never says which order it is of.

    Raises:
        ConfigError: another option, or no such number.
    """
    for name, value in options.items():
        kinds = _OPTIONS.get(name)
        least = -_LARGEST if name == "seed" else 0
        if kinds is None or type(value) not in kinds or not least <= value < _LARGEST:
            raise ConfigError(f"expected {', '.join(_OPTIONS)} as numbers, given something else: update the bridge")
    return dict(options)


def _order_given(path: Path) -> Order | None:
    """The order that a file of global weights is for; reads the file's head alone."""
    try:
        with safe_open(path, framework="pt") as file:
            return Order.from_meta(json.loads((file.metadata() or {}).get("order", "{}")))
    except (OSError, SafetensorError, ConfigError, ValueError):
        return None


def give_way_to_clinicians() -> None:
    """Let a clinician's training have the slot: a round's training is stopped first, and goes on afterwards."""
    from monailabel.endpoints import train

    original = train.run_model

    @functools.wraps(original)
    def run_model(model: str, params: dict | None = None, *arguments: Any, **options: Any) -> Any:
        if params and ROUND_KEY in params:
            raise ConfigError(f"a training's {ROUND_KEY!r} is set by the federation's own routes: leave it out")
        running = _running()
        if running is not None and ROUND_KEY in running["request"]:
            logger.info("a round's training gives way to one started here")
            AsyncTask.stop("train")
        return original(model, params, *arguments, **options)

    train.run_model = run_model


def _running() -> dict[str, Any] | None:
    """The training that has the slot."""
    return next((task for task in background_tasks("train") if task["status"] in _UNFINISHED), None)


def _is_of(task: Mapping[str, Any], order: Order, kind: str) -> bool:
    about = task["request"].get(ROUND_KEY) or {}
    return about.get("kind") == kind and all(about.get(key) == value for key, value in order.to_meta().items())
