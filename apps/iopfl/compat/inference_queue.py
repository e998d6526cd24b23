"""As many inferences run at once as there are requests, and memory ends before they do.

Defect: `config.py:96` sets `MONAI_LABEL_INFER_CONCURRENCY` to -1, no limit. Upstream the
blocked event loop (see `blocking_endpoints`) hides it: one request ran at a time.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iopfl.compat._patching import once
from iopfl.compat.plain_errors import busy

WAITING_LIMIT = 16
"""Requests that may wait for their turn; well below the 40 threads that serve all endpoints."""


class InferenceQueue:
    """Lets a few inferences run, some wait, and refuses the rest.

    Args:
        running: how many may run at once.
        waiting: how many more may wait.
    """

    def __init__(self, running: int, waiting: int = WAITING_LIMIT) -> None:
        self._running = threading.Semaphore(running)
        self._admitted = threading.Semaphore(running + waiting)
        self._thread = threading.local()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn. Within a turn, another one of the same thread is free.

        Raises:
            MONAILabelException: too many wait already; the server answers 503.
        """
        if getattr(self._thread, "in_turn", False):
            yield
            return
        if not self._admitted.acquire(blocking=False):
            raise busy(f"{WAITING_LIMIT} inferences are waiting already: try again in a minute")
        try:
            with self._running:
                self._thread.in_turn = True
                try:
                    yield
                finally:
                    self._thread.in_turn = False
        finally:
            self._admitted.release()


@once
def apply() -> None:
    """Run one inference at a time, or as many as `MONAI_LABEL_INFER_CONCURRENCY` says."""
    from monailabel.config import settings
    from monailabel.interfaces.app import MONAILabelApp

    queue = InferenceQueue(max(1, settings.MONAI_LABEL_INFER_CONCURRENCY))
    original = MONAILabelApp.infer

    @functools.wraps(original)
    def infer(self: Any, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        with queue.turn():
            return original(self, request, datastore)

    MONAILabelApp.infer = infer
