"""FLARE's processes at a site without what a site does not need: `python -m fl_bridge.site_process MODULE ...`.

FLARE asks a site's `authorization.json` only where the server's message says so, and lets the role `super` do
everything; a server that was changed says what it likes, and speaks to a job's process past its parent too. So what
a run does not need is taken out before FLARE starts: there is then nothing that could be asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import ReservedTopic
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message as CellMessage
from nvflare.private.admin_defs import Message, error_reply
from nvflare.private.defs import ERROR_MSG_PREFIX, RequestHeader
from nvflare.private.fed.client import admin_commands, fed_client_base, scheduler_cmds, training_cmds
from nvflare.private.fed.client.admin import RequestProcessor
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from fl_bridge.admission import META, check_job, check_job_id
from fl_bridge.job_process import run_flare, start_through
from fl_bridge.kit_policy import MARK
from fl_bridge.messages import limit_messages
from fl_bridge.site_policy import SitePolicy
from iopfl.base.errors import ConfigError

logger = logging.getLogger(__name__)

_MODULE = "fl_bridge.site_process"
_FAILED = f"{ERROR_MSG_PREFIX}: failed at the site, whose own log says why"
_REQUESTS = (
    scheduler_cmds.CheckResourceProcessor,
    scheduler_cmds.CancelResourceProcessor,
    scheduler_cmds.StartJobProcessor,
    training_cmds.DeployProcessor,
    training_cmds.AbortAppProcessor,
    training_cmds.NotifyJobStatusProcessor,
)
"""What a site's parent process does when it is asked: take a job, start it, end it."""
_COMMANDS = (admin_commands.AbortCommand, admin_commands.CheckStatusCommand, admin_commands.ByeCommand)
"""The same for a job's process."""
_TOPICS = frozenset(
    {
        ReservedTopic.END_RUN,
        ReservedTopic.ABORT_ASK,
        ReservedTopic.DO_TASK,
        ReservedTopic.SYNC_RUNNER,
        ReservedTopic.JOB_HEART_BEAT,
        ReservedTopic.TASK_CHECK,
    }
)
"""What a job's process hears of its run beside its tasks: no events of others' making, no streams of files."""


class SiteRequest(RequestProcessor):
    """One of FLARE's requests, of a job that was admitted, and with answers that tell nothing of this site."""

    def __init__(self, inner: RequestProcessor) -> None:
        self._inner = inner

    def get_topics(self) -> list[str]:
        """As FLARE's own."""
        return self._inner.get_topics()

    def process(self, req: Message, app_ctx: Any) -> Message:
        """Do it, or say no in a fixed sentence; the reason is in the site's own log."""
        try:
            job = req.get_header(RequestHeader.JOB_ID)
            if not isinstance(self._inner, scheduler_cmds.CancelResourceProcessor):  # which is of no job
                check_job_id(job)
            if isinstance(self._inner, training_cmds.DeployProcessor):  # FLARE's own unpacks first and looks then
                check_job(req.body)
        except ConfigError as error:
            logger.warning("%s is refused: %s", req.topic, error)
            return error_reply(f"{ERROR_MSG_PREFIX}: {error}")
        meta = req.get_header(RequestHeader.JOB_META)
        if isinstance(meta, dict):
            req.set_header(RequestHeader.JOB_META, {key: value for key, value in meta.items() if key in META})
        try:
            reply = self._inner.process(req, app_ctx)
        except Exception:
            logger.exception("%s of job %s failed", req.topic, job)
            return error_reply(_FAILED)
        if isinstance(reply.body, str) and ERROR_MSG_PREFIX in reply.body:
            logger.warning("%s of job %s failed: %s", req.topic, job, reply.body)
            return error_reply(_FAILED)
        return reply


class _SiteCell(Cell):
    """FLARE's connection to the others, where a job's process hears what it needs for its run and no more."""

    def register_request_cb(self, channel: str, topic: str, cb: Any, *arguments: Any, **options: Any) -> None:
        if channel == CellChannel.AUX_COMMUNICATION:
            cb = _only(_TOPICS, cb)
        self._register_request_cb(channel, topic, cb, *arguments, **options)


class _NoAgent:
    """In place of FLARE's agent, which tells whoever asks of this site's processes, settings and connections."""

    def __init__(self, cell: Cell) -> None:
        pass

    def close(self) -> None:
        """Nothing is open."""


class SiteJobLauncher(ClientProcessJobLauncher):
    """Starts a job's process through this module too."""

    def get_command(self, job_meta: dict, fl_ctx: FLContext) -> str:
        """FLARE's command, with this module before FLARE's."""
        start_through(_MODULE, fl_ctx)
        return super().get_command(job_meta, fl_ctx)


def restrict() -> None:
    """Take out of FLARE, in this process, what a site does not need."""
    processors = ClientRequestProcessors.request_processors
    processors[:] = [SiteRequest(processor) for processor in processors if isinstance(processor, _REQUESTS)]
    commands = admin_commands.AdminCommands.commands
    commands[:] = [command for command in commands if isinstance(command, _COMMANDS)]
    fed_client_base.Cell = _SiteCell
    fed_client_base.NetAgent = _NoAgent
    limit_messages(_find_limit())


def _find_limit() -> Callable[[], float]:
    kit = os.environ.get(MARK)
    limit = (SitePolicy.read(Path(kit, "local")) if kit else SitePolicy()).max_message_bytes
    return lambda: limit


def _only(topics: frozenset[str], callback: Any) -> Any:
    def answer(request: CellMessage, *arguments: Any, **options: Any) -> Any:
        topic = request.get_header(MessageHeaderKey.TOPIC)
        if topic not in topics:
            logger.warning("a message is refused: a run has none of its topic")
            return make_reply(ReturnCode.INVALID_REQUEST)
        return callback(request, *arguments, **options)

    return answer


if __name__ == "__main__":
    run_flare(restrict)
