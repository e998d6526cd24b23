"""A training survives the server that started it.

Defect: `utils/async_tasks/utils.py:66` starts a child process; when the server is killed the child
trains on, publishes, and keeps its memory. (`background_processes` is about an orderly stop.)
Upstream: not reported.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from iopfl.compat._patching import once

CHILD_VARIABLE = "IOPFL_CHILD_OF"
"""Environment variable: the process id of the server that started this child."""

PR_SET_PDEATHSIG = 1  # prctl(2)


@once
def apply() -> None:
    """In a child, ask the kernel to end this process with its server. Linux only."""
    parent = os.environ.get(CHILD_VARIABLE)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        # It ended before the kernel was asked.
        sys.exit("the label server that started this process is gone")
