"""How a restriction of FLARE reaches its processes: each starts as `python -m OURS FLARE'S ...`, a job's too."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs


def start_through(module: str, fl_ctx: FLContext) -> None:
    """Put a module of ours before FLARE's in the command of a job's process.

    `-P`: no file in the folder that it runs in is taken for a module.
    """
    arguments = fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS)
    _, flare = arguments[JobProcessArgs.EXE_MODULE]
    arguments[JobProcessArgs.EXE_MODULE] = ("-P -m", f"{module} {flare}")


def run_flare(restrict: Callable[[], None]) -> None:
    """Restrict FLARE in this process, and run one of its modules as `python -m` would."""
    restrict()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
