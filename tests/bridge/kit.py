"""A site's kit without FLARE's processes: its executor, asked as FLARE asks it, and what it answers."""

from __future__ import annotations

from pathlib import Path

import torch
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fl_bridge.exchange import REASON_HEADER, TASK_SHARE, to_params
from fl_bridge.executor import SiteExecutor
from fl_bridge.site_policy import SitePolicy
from iopfl.base.reasons import Reason
from iopfl.core.order import Order

FEDERATION, TASK = "fed-1", "disk"


class Kit:
    """A kit's `local` folder with its policy, as FLARE's engine shows it to the executor; a restart begins anew."""

    def __init__(self, folder: Path, trainer, **policy) -> None:
        self.folder = folder
        self.trainer = trainer
        SitePolicy(**{"federation": FEDERATION, "tasks": (TASK,), **policy}).write(folder)
        self.restart()

    def restart(self) -> None:
        self.executor = SiteExecutor()
        context = FLContext()
        context.get_engine = lambda: self
        self.executor.handle_event(EventType.START_RUN, context)

    def get_workspace(self):
        return self

    def get_site_config_dir(self) -> str:
        return str(self.folder)

    def get_component(self, name):
        return self.trainer

    def send(self, task: str, params, meta) -> Shareable:
        """What leaves the site for a task."""
        model = FLModel(params_type=ParamsType.FULL, params=params, meta=dict(meta))
        return self.answer(task, FLModelUtils.to_shareable(model))

    def answer(self, task: str, message: Shareable) -> Shareable:
        """What leaves the site for a message as it arrived."""
        return self.executor.execute(task, message, FLContext(), Signal())

    def ask(self, base, order: Order, task: str = TASK_SHARE):
        """The weights that the server makes of the answer; or the reason why there is none."""
        reply = self.send(task, to_params(base, integers=False), order.to_meta())
        if reply.get_return_code() != ReturnCode.OK:
            return Reason(reply.get_header(REASON_HEADER))
        difference = FLModelUtils.from_shareable(reply).params
        return {key: value + torch.from_numpy(difference[key]) for key, value in base.items() if key in difference}
