"""A site's side of a federation: FLARE's tasks, given to the site's trainer.

Whatever goes wrong here comes back as an answer with the reason in a header:
an exception that leaves an executor would be one site's fault and every site's loss.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fl_bridge.exchange import (
    BANK_PARAM,
    REASON_HEADER,
    SITS_OUT_HEADER,
    TASK_PUBLISH,
    TASK_SHARE,
    TASK_TRAIN,
    WITHHELD_HEADER,
    from_params,
    to_params,
)
from fl_bridge.site_policy import FILE, SitePolicy
from fl_bridge.trainer import SiteTrainer
from iopfl.base.errors import CancelledError, SitsOutError
from iopfl.base.files import write_bytes
from iopfl.core.order import Order, Refusal
from iopfl.core.weights import Weights, floating

_SHARED = "shared.json"


class SiteExecutor(Executor):
    """Answers `train`, `share_personalized` and `publish_bank` through a `SiteTrainer`, as the site's policy allows."""

    def __init__(self, trainer_id: str = "trainer") -> None:
        """Args:
        trainer_id: id of the job's component that trains.
        """
        super().__init__()
        self.trainer_id = trainer_id
        self._trainer: SiteTrainer | None = None
        self._policy = SitePolicy()
        self._folder = Path()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Find the trainer, and the site's policy, when the run starts."""
        if event_type == EventType.START_RUN:
            engine = fl_ctx.get_engine()
            self._folder = Path(engine.get_workspace().get_site_config_dir())
            if (self._folder / FILE).is_file():  # there is none in the simulator
                self._policy = SitePolicy.read(self._folder)
            self._trainer = engine.get_component(self.trainer_id)
            if self._trainer is not None:
                self._trainer.configure(self._policy, self._folder)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task; never raises."""
        try:
            return self._answer(task_name, shareable, abort_signal)
        except CancelledError:
            return make_reply(ReturnCode.TASK_ABORTED)
        except _WithheldError as error:
            return _decline(Refusal(str(error), sits_out=True), withheld=True)
        except Exception as error:
            refusal = Refusal.of(error)
            if not refusal.sits_out:
                self.log_exception(fl_ctx, f"{task_name}: {error}")
            return _decline(refusal)

    def _answer(self, task_name: str, shareable: Shareable, abort_signal: Signal) -> Shareable:
        if self._trainer is None:
            raise SitsOutError(f"no trainer under the id {self.trainer_id!r} in the job's configuration")
        if task_name not in (TASK_TRAIN, TASK_SHARE, TASK_PUBLISH):
            return make_reply(ReturnCode.TASK_UNKNOWN)
        model = FLModelUtils.from_shareable(shareable)
        order = Order.from_meta(model.meta)
        if task_name == TASK_PUBLISH:
            label = self._trainer.publish(np.asarray(model.params[BANK_PARAM]).tobytes())
            return _reply({"received": torch.ones(1)}, {**order.to_meta(), "bank": label})
        given = from_params(model.params, what="global weights")
        if task_name == TASK_TRAIN:
            update = self._trainer.train(given, order, cancelled=lambda: abort_signal.triggered)
            about = {"samples": update.samples, "metrics": dict(update.metrics)}
            return _reply(_difference(update.weights, given), {**order.to_meta(), **about})
        self._check_share(order)
        shared = self._trainer.personalized(given, order, cancelled=lambda: abort_signal.triggered)
        private = self._policy.privatize(floating(shared.weights), floating(given), order, self._folder)
        about = {
            "samples": shared.samples,
            "metrics": dict(shared.metrics),
            "personalized_round": shared.round_index,
        }
        reply = _reply(_difference(private, given), {**order.to_meta(), **about})
        self._note_shared(order)
        return reply

    def _check_share(self, order: Order) -> None:
        """Whether the personalized model may leave now.

        Raises:
            _WithheldError: never, by this site's policy.
            SitsOutError: not yet.
        """
        if not self._policy.share_personalized:
            raise _WithheldError("keeps its personalized model, by its own policy")
        last = self._read_shared().get(order.federation)
        if last is not None and last < order.round_index < last + self._policy.share_every:
            every = self._policy.share_every
            raise SitsOutError(f"shares its personalized model every {every} rounds, last in round {last + 1}")

    def _note_shared(self, order: Order) -> None:
        if self._policy.share_every:
            shared = {**self._read_shared(), order.federation: order.round_index}
            write_bytes(self._folder / _SHARED, json.dumps(shared).encode())

    def _read_shared(self) -> dict[str, int]:
        path = self._folder / _SHARED
        return json.loads(path.read_bytes()) if path.is_file() else {}


class _WithheldError(SitsOutError):
    """The site's policy keeps its personalized model."""


def _difference(weights: Weights, reference: Weights) -> Weights:
    return {key: value - reference[key] for key, value in floating(weights).items()}


def _reply(weights: Weights, meta: dict[str, object]) -> Shareable:
    params = to_params(weights, integers=False)
    return FLModelUtils.to_shareable(FLModel(params_type=ParamsType.DIFF, params=params, meta=meta))


def _decline(refusal: Refusal, *, withheld: bool = False) -> Shareable:
    reply = make_reply(ReturnCode.EXECUTION_RESULT_ERROR)
    reply.set_header(REASON_HEADER, refusal.reason)
    reply.set_header(SITS_OUT_HEADER, refusal.sits_out)
    reply.set_header(WITHHELD_HEADER, withheld)
    return reply
