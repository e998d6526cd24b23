"""FLARE at the server without what one site could do to all: `python -m fl_bridge.server_process MODULE ...`.

FLARE takes an event that a site sends for one of its own, whatever its name: by its code that of a fatal error aborts
every site's job, and that of the system's end starts no further one. A federation of ours sends no events.
"""

from __future__ import annotations

import logging
import runpy
import sys

from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher
from nvflare.widgets.fed_event import FedEventRunner

logger = logging.getLogger(__name__)

_MODULE = "fl_bridge.server_process"


class ServerJobLauncher(ServerProcessJobLauncher):
    """Starts a job's process through this module too."""

    def get_command(self, job_meta: dict, fl_ctx: FLContext) -> str:
        """FLARE's command, with this module before FLARE's."""
        arguments = fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS)
        _, module = arguments[JobProcessArgs.EXE_MODULE]
        arguments[JobProcessArgs.EXE_MODULE] = ("-P -m", f"{_MODULE} {module}")
        return super().get_command(job_meta, fl_ctx)


def restrict() -> None:
    """Take out of FLARE, in this process, that sites send events."""
    FedEventRunner._receive = _refuse


def _refuse(runner: FedEventRunner, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
    logger.warning("a site sent an event, which is refused: no federation has any")
    return make_reply(ReturnCode.BAD_REQUEST_DATA)


def main() -> None:
    """Run one of FLARE's modules as `python -m` would."""
    restrict()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
