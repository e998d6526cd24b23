"""FLARE at the server without what one site could do to all: `python -m fl_bridge.server_process MODULE ...`.

FLARE takes an event that a site sends for one of its own, whatever its name: by its code that of a fatal error aborts
every site's job, and that of the system's end starts no further one. A federation of ours sends no events.
A site that says its part of a job failed ends the whole job too; which one it was is noted for `fl-bridge run`.
A message that cannot be read, or that its receiver calls too large, has FLARE end the whole job: here it is the
fault of that site, which gives no answer in the round.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher
from nvflare.fuel.f3.cellnet import cell
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys, JobFailureMsgKey
from nvflare.private.fed.server.fed_server import FederatedServer
from nvflare.widgets.fed_event import FedEventRunner

from fl_bridge.job_process import run_flare, start_through
from fl_bridge.kit_policy import JOB_ID, MARK
from fl_bridge.messages import limit_messages
from fl_bridge.record import GLOBAL
from fl_bridge.server_kit import STATE, note_failed_job

logger = logging.getLogger(__name__)

_OVERHEAD, _NO_WEIGHTS = 64 * 2**20, 2**29
_MODULE = "fl_bridge.server_process"
_FAILED = frozenset(
    {
        JobReturnCode.EXCEPTION,
        JobReturnCode.UNSAFE_COMPONENT,
        JobReturnCode.CONFIG_ERROR,
        JobReturnCode.INFRASTRUCTURE_ERROR,
        JobReturnCode.ABORTED,
    }
)
"""What a site says of its part of a job, and FLARE ends the job."""


class ServerJobLauncher(ServerProcessJobLauncher):
    """Starts a job's process through this module too."""

    def get_command(self, job_meta: dict, fl_ctx: FLContext) -> str:
        """FLARE's command, with this module before FLARE's."""
        start_through(_MODULE, fl_ctx)
        return super().get_command(job_meta, fl_ctx)


def restrict() -> None:
    """Take out of FLARE, in this process, that sites send events and that one site's message ends the job."""
    FedEventRunner._receive = _refuse
    cell._is_server_job_cell = lambda my_info: False
    FederatedServer.process_job_failure = _noting(FederatedServer.process_job_failure)
    limit_messages(_find_limit)


def _find_limit() -> float:
    """Bytes of an answer: twice the weights that it answers, and something."""
    sizes = []
    for path in Path(os.environ.get(MARK, "/nonexistent"), STATE).glob(GLOBAL):
        with contextlib.suppress(FileNotFoundError):  # the round before last, which is over
            sizes.append(path.stat().st_size)
    return 2 * max(sizes, default=_NO_WEIGHTS) + _OVERHEAD


def _noting(process: Callable[[FederatedServer, Message], Message]) -> Callable[[FederatedServer, Message], Message]:
    """FLARE's own, which logs who it was and tells nobody."""

    def note(server: FederatedServer, request: Message) -> Message:
        client = server.client_manager.clients.get(request.get_header(CellMessageHeaderKeys.TOKEN))
        said = request.payload if isinstance(request.payload, dict) else {}
        job = str(said.get(JobFailureMsgKey.JOB_ID))
        pending = client is not None and server.engine.job_runner.is_client_outcome_pending(job, client.name)
        if pending and said.get(JobFailureMsgKey.CODE) in _FAILED and JOB_ID.fullmatch(job) and MARK in os.environ:
            note_failed_job(Path(os.environ[MARK]), job, client.name)
        return process(server, request)

    return note


def _refuse(runner: FedEventRunner, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
    logger.warning("a site sent an event, which is refused: no federation has any")
    return make_reply(ReturnCode.BAD_REQUEST_DATA)


if __name__ == "__main__":
    run_flare(restrict)
