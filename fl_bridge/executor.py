"""A site's side of a federation: FLARE's tasks, given to the site's trainer.

Whatever goes wrong here comes back as an answer with the reason in a header:
an exception that leaves an executor would be one site's fault and every site's loss.
"""

from __future__ import annotations

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fl_bridge.exchange import (
    REASON_HEADER,
    SITS_OUT_HEADER,
    TASK_SHARE,
    TASK_TRAIN,
    floating,
    from_params,
    to_params,
)
from fl_bridge.trainer import SiteTrainer
from iopfl.core.errors import CancelledError, SitsOutError
from iopfl.core.order import Order, Refusal
from iopfl.core.weights import Weights


class SiteExecutor(Executor):
    """Answers `train` and `share_personalized` through a `SiteTrainer`."""

    def __init__(self, trainer_id: str = "trainer") -> None:
        """Args:
        trainer_id: id of the job's component that trains.
        """
        super().__init__()
        self.trainer_id = trainer_id
        self._trainer: SiteTrainer | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Find the trainer when the run starts."""
        if event_type == EventType.START_RUN:
            self._trainer = fl_ctx.get_engine().get_component(self.trainer_id)

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """Do one task; never raises."""
        try:
            return self._answer(task_name, shareable, abort_signal)
        except CancelledError:
            return make_reply(ReturnCode.TASK_ABORTED)
        except Exception as error:
            refusal = Refusal.of(error)
            if not refusal.sits_out:
                self.log_exception(fl_ctx, f"{task_name}: {error}")
            return _decline(refusal)

    def _answer(self, task_name: str, shareable: Shareable, abort_signal: Signal) -> Shareable:
        if self._trainer is None:
            raise SitsOutError(f"no trainer under the id {self.trainer_id!r} in the job's configuration")
        if task_name not in (TASK_TRAIN, TASK_SHARE):
            return make_reply(ReturnCode.TASK_UNKNOWN)
        model = FLModelUtils.from_shareable(shareable)
        order = Order.from_meta(model.meta)
        given = from_params(model.params, what="global weights")
        if task_name == TASK_TRAIN:
            update = self._trainer.train(given, order, cancelled=lambda: abort_signal.triggered)
            params = {key: value - given[key] for key, value in floating(update.weights).items()}
            about = {"samples": update.samples, "metrics": dict(update.metrics)}
            return _reply(params, ParamsType.DIFF, {**order.to_meta(), **about})
        shared = self._trainer.personalized(given, order, cancelled=lambda: abort_signal.triggered)
        about = {
            "samples": shared.samples,
            "metrics": dict(shared.metrics),
            "personalized_round": shared.round_index,
        }
        return _reply(floating(shared.weights), ParamsType.FULL, {**order.to_meta(), **about})


def _reply(weights: Weights, params_type: ParamsType, meta: dict[str, object]) -> Shareable:
    params = to_params(weights, integers=False)
    return FLModelUtils.to_shareable(FLModel(params_type=params_type, params=params, meta=meta))


def _decline(refusal: Refusal) -> Shareable:
    reply = make_reply(ReturnCode.EXECUTION_RESULT_ERROR)
    reply.set_header(REASON_HEADER, refusal.reason)
    reply.set_header(SITS_OUT_HEADER, refusal.sits_out)
    return reply
