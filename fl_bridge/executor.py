"""A site's side of a federation: FLARE's tasks, given to the site's trainer.

Whatever goes wrong here comes back as an answer with the reason in a header:
an exception that leaves an executor would be one site's fault and every site's loss.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Mapping
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

from fl_bridge.checking import keep_metrics
from fl_bridge.exchange import (
    BANK_PARAM,
    REASON_HEADER,
    TASK_PUBLISH,
    TASK_SHARE,
    TASK_TRAIN,
    from_params,
    to_params,
)
from fl_bridge.sharing import Sharing
from fl_bridge.site_policy import FILE, SitePolicy
from fl_bridge.trainer import SiteTrainer
from iopfl.base.errors import CancelledError, ConfigError, SitsOutError
from iopfl.base.reasons import Reason, find_reason
from iopfl.core.order import Order
from iopfl.core.weights import Weights, floating

_DIGITS = 4
_LABEL = re.compile(r"[0-9]{1,9}-[0-9a-f]{12}")
"""Of a bank: version and content id."""
_KIT = "startup/client.crt"
"""What every site's kit has: without the site's policy there, nothing may leave."""


class SiteExecutor(Executor):
    """Answers `train`, `share_personalized` and `publish_bank` through a `SiteTrainer`, as the site's policy allows."""

    def __init__(self, trainer_id: str = "trainer") -> None:
        """Args:
        trainer_id: id of the job's component that trains.
        """
        super().__init__()
        self.trainer_id = trainer_id
        self._trainer: SiteTrainer | None = None
        self._problem: Exception | None = None
        self._policy = SitePolicy()
        self._sharing: Sharing | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Find the trainer, and the site's policy, when the run starts; what fails here is every task's answer."""
        if event_type != EventType.START_RUN:
            return
        try:
            self._configure(fl_ctx)
        except Exception as error:
            self._problem = error

    def _configure(self, fl_ctx: FLContext) -> None:
        engine = fl_ctx.get_engine()
        folder = Path(engine.get_workspace().get_site_config_dir())
        if (folder / FILE).is_file() or (folder.parent / _KIT).is_file():  # neither in the simulator
            self._policy = SitePolicy.read(folder)
            self._sharing = Sharing(self._policy, folder)
        self._trainer = engine.get_component(self.trainer_id)
        if self._trainer is not None:
            self._trainer.configure(self._policy, folder)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task; never raises."""
        try:
            return self._answer(task_name, shareable, abort_signal)
        except CancelledError:
            return make_reply(ReturnCode.TASK_ABORTED)
        except Exception as error:
            reason = find_reason(error)
            if reason.sits_out:
                self.log_info(fl_ctx, f"{task_name}: {error}")
            else:
                self.log_exception(fl_ctx, f"{task_name}: {error}")
            return _decline(reason)

    def _answer(self, task_name: str, shareable: Shareable, abort_signal: Signal) -> Shareable:
        if self._problem is not None:
            raise self._problem
        if self._trainer is None:
            raise ConfigError(f"no trainer under the id {self.trainer_id!r} in the job's configuration")
        if task_name not in (TASK_TRAIN, TASK_SHARE, TASK_PUBLISH):
            return make_reply(ReturnCode.TASK_UNKNOWN)
        model = FLModelUtils.from_shareable(shareable)
        order = Order.from_meta(model.meta)
        if self._sharing is not None:
            self._policy.check_federation(order.federation)
        if task_name == TASK_PUBLISH:
            label = self._trainer.publish(np.asarray(model.params[BANK_PARAM]).tobytes())
            return _reply(
                {"received": torch.ones(1)}, {**order.to_meta(), "bank": label if _LABEL.fullmatch(label) else ""}
            )
        given = from_params(model.params, what="global weights")

        def cancelled() -> bool:
            return abort_signal.triggered

        if task_name == TASK_TRAIN:
            with self._sharing.count_round(order) if self._sharing else contextlib.nullcontext():
                update = self._trainer.train(given, order, cancelled=cancelled)
            about = {"samples": int(update.samples), "metrics": _figures(update.metrics)}
            return _reply(_difference(update.weights, given), {**order.to_meta(), **about})
        if not self._policy.share_personalized:
            raise SitsOutError(Reason.WITHHELD, reason=Reason.WITHHELD)
        ask = functools.partial(self._trainer.personalized, given, order, cancelled=cancelled)
        shared = self._sharing.share(ask, floating(given), cancelled=cancelled) if self._sharing else ask()
        about = {
            "samples": int(shared.samples),
            "metrics": _figures(shared.metrics),
            "personalized_round": int(shared.round_index),
        }
        return _reply(_difference(shared.weights, given), {**order.to_meta(), **about})


def _figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """The known figures alone, with the digits that are looked at."""
    return {key: round(value, _DIGITS) for key, value in keep_metrics({"metrics": metrics}).items()}


def _difference(weights: Weights, reference: Weights) -> Weights:
    return {key: value - reference[key] for key, value in floating(weights).items()}


def _reply(weights: Weights, meta: dict[str, object]) -> Shareable:
    params = to_params(weights, integers=False)
    return FLModelUtils.to_shareable(FLModel(params_type=ParamsType.DIFF, params=params, meta=meta))


def _decline(reason: Reason) -> Shareable:
    reply = make_reply(ReturnCode.EXECUTION_RESULT_ERROR)
    reply.set_header(REASON_HEADER, reason.value)
    return reply
