"""`/logs` shows an empty page without internet access, and looks in one folder only.

Defect: `endpoints/logs.py:32` loads its viewer from two CDNs; `:99` reads the log below the app's
folder, which an installed app cannot write to; `:104` fails where there is no `nvidia-smi`.
Upstream: not reported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import deque
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from fastapi.responses import PlainTextResponse

from iopfl.compat._patching import once

LOG_FILE_VARIABLE = "IOPFL_LOG_FILE"
"""Environment variable: where `iopfl serve` has the log written."""


def log_file() -> Path:
    """Say where this server's log is."""
    from monailabel.config import settings

    chosen = os.environ.get(LOG_FILE_VARIABLE)
    return Path(chosen) if chosen else Path(settings.MONAI_LABEL_APP_DIR, "logs", "app.log")


@once
def apply() -> None:
    """Answer with the log's last lines as plain text."""
    from monailabel.endpoints import logs

    def get_logs(logger_file: str, lines: int, html: bool, text: bool, refresh: int) -> Any:
        path = log_file()
        if not path.is_file():
            raise HTTPException(404, "this server writes no log file: look at its terminal")
        with path.open(encoding="utf-8", errors="replace") as file:
            tail = deque(file, lines) if lines and lines > 0 else file.readlines()
        headers = {"Refresh": str(max(refresh, 3))} if refresh else None
        return PlainTextResponse("".join(tail), headers=headers)

    def run_nvidia_smi(*args: Any, **kwargs: Any) -> Any:
        if shutil.which("nvidia-smi") is None:
            raise HTTPException(404, "nvidia-smi is not installed here: there is no GPU to report")
        return subprocess.run(*args, **kwargs)

    logs.get_logs = get_logs
    logs.subprocess = _Subprocess(run_nvidia_smi)


class _Subprocess:
    """`subprocess`, as far as `/logs/gpu` uses it."""

    PIPE = subprocess.PIPE

    def __init__(self, run: Any) -> None:
        self.run = run
