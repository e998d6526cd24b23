"""Stopping the server, or a training, leaves processes behind; and a task's record is unreliable.

Defect, all in `utils/async_tasks/`: nothing ends the child processes at shutdown, and the server waits
for them (`utils.py:108`); the last lines of output, where the error is, are lost (`utils.py:76`);
a task whose process cannot start stays SUBMITTED for ever; a second `POST /train` within the
first one's start is queued instead of refused (`task.py:23` sees processes, not tasks);
every task's process imports for five seconds and more (`utils.py:50`), in a federation every round.
Upstream: not reported.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from iopfl.compat._patching import once
from iopfl.compat._ready_process import END
from iopfl.compat.orphaned_child import CHILD_VARIABLE

logger = logging.getLogger(__name__)

SHOWN_LINES = 20
"""Lines of output that `GET /train/` shows."""

TERMINATION_SECONDS = 3.0
"""Time between asking a process to end and ending it."""


@once
def apply() -> None:
    """Start children as process groups, end whole groups, and keep the tasks' records straight."""
    from monailabel.app import app
    from monailabel.utils.async_tasks import task as async_task
    from monailabel.utils.async_tasks import utils

    utils._task_func = run_task
    utils.stop_background_task = async_task.stop_background_task = stop
    async_task.processes = unfinished

    original = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(server: Any) -> AsyncIterator[Any]:
        async with original(server) as state:
            try:
                yield state
            finally:
                stop_all()

    app.router.lifespan_context = lifespan


def run_task(task: dict[str, Any], method: str, callback: Callable | None = None) -> None:
    """Run one background task in a process of its own, and keep its record.

    Args:
        task: the record that `GET /train/` shows; `status` goes from SUBMITTED through
            RUNNING to DONE, ERROR or STOPPED, `details` holds the last lines of output.
        method: train, batch_infer or scoring.
        callback: called with the record at the end.
    """
    from monailabel.utils.async_tasks.utils import background_processes

    if task["status"] == "STOPPED":
        return
    try:
        process = _start(task["request"], method)
        background_processes[method][task["id"]] = process
        if task["status"] == "STOPPED":  # while it was starting
            _end(process)
        task.update(status="RUNNING" if task["status"] == "SUBMITTED" else task["status"])
        status = _follow(process, task, logging.getLogger(f"task_{method}"))
        if process.poll() is None:
            _ready.keep(process)
        outcome = "DONE" if status == 0 else "ERROR"
    except Exception as error:
        logger.exception("%s cannot run", method)
        task["details"] = [f"{type(error).__name__}: {error}"]
        outcome = "ERROR"
    finally:
        background_processes[method].pop(task["id"], None)
    if task["status"] != "STOPPED":
        task["status"] = outcome
    task["end_ts"] = _now()
    if callback:
        callback(task)


def stop(method: str) -> dict[str, Any] | None:
    """End the task of one kind that runs, with all its processes.

    Returns:
        Its record, or None when nothing runs.
    """
    from monailabel.utils.async_tasks.utils import background_processes, tasks

    waiting = [task for task in tasks(method) if task["status"] in ("SUBMITTED", "RUNNING")]
    if not waiting:
        return None
    task = waiting[0]
    task.update(status="STOPPED", end_ts=_now())
    process = background_processes.get(method, {}).get(task["id"])
    if process is not None:
        _end(process)
    return task


def stop_all() -> None:
    """End every background task, and let none begin."""
    from monailabel.utils.async_tasks.utils import background_executors, background_tasks

    for executor in background_executors.values():
        executor.shutdown(wait=False, cancel_futures=True)
    for method in list(background_tasks):
        while stop(method):
            pass
    ready = _ready.take()
    if ready is not None:
        _end(ready)


def unfinished(method: str) -> dict[str, Any]:
    """List the tasks of one kind that run or wait, the running one first."""
    from monailabel.utils.async_tasks.utils import tasks

    return {t["id"]: t for t in tasks(method) if t["status"] in ("SUBMITTED", "RUNNING")}


class _Ready:
    """At most one process that has imported all a task needs, and waits for one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._lock = threading.Lock()

    def keep(self, process: subprocess.Popen) -> None:
        """Keep a process for the next task; one that was kept before is ended."""
        with self._lock:
            before, self._process = self._process, process
        if before is not None:
            _end(before)

    def take(self) -> subprocess.Popen | None:
        """The process, if there is one; it is then the caller's."""
        with self._lock:
            process, self._process = self._process, None
        return process if process is not None and process.poll() is None else None


_ready = _Ready()
_is_repeated: Callable[[dict[str, Any]], bool] = lambda request: False  # noqa: E731


def stay_ready_after(is_repeated: Callable[[dict[str, Any]], bool]) -> None:
    """Keep the process of each task whose request is one of many to come, for the next of them."""
    global _is_repeated
    _is_repeated = is_repeated


def _start(request: dict[str, Any], method: str) -> subprocess.Popen:
    gpus = request.get("gpus") or "all"
    request["gpus"] = "all"
    environment = _environment()
    if gpus != "all":
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    if gpus == "all" and _is_repeated(request):
        process = _ready.take() or _open([sys.executable, "-m", "iopfl.compat._ready_process"], environment)
        with suppress(BrokenPipeError):  # it ended just now: reading from it will say so
            process.stdin.write(json.dumps({"method": method, "request": request}) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        return process
    body = json.dumps(request, separators=(",", ":"))
    process = _open([sys.executable, "-m", "monailabel.interfaces.utils.app", "-m", method, "-r", body], environment)
    process.stdin.close()  # type: ignore[union-attr]
    return process


def _environment() -> dict[str, str]:
    # The child imports iopfl also where it is not installed but only on this process's path.
    package_folder = str(Path(__file__).resolve().parents[2])
    search_path = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), package_folder]
    return {
        **os.environ,
        CHILD_VARIABLE: str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, search_path))),
        "PYTHONUNBUFFERED": "1",
    }


def _open(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )


def _follow(process: subprocess.Popen, task: dict[str, Any], log: logging.Logger) -> int:
    """Log a task's output to its end, and keep the last lines in the record; gives its exit status."""
    lines: deque[str] = deque(maxlen=SHOWN_LINES)
    task["details"] = []
    while line := process.stdout.readline():  # type: ignore[union-attr]
        if line.startswith(END):
            return int(line.removeprefix(END))
        if line := line.rstrip():
            log.info(line)
            lines.append(line)
            # A new list each time: a reader may be in the middle of the old one.
            task["details"] = list(lines)
    process.stdout.close()  # type: ignore[union-attr]
    return process.wait()


def _end(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(TERMINATION_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)


def _now() -> str:
    return datetime.today().strftime("%Y-%m-%d %H:%M:%S")
