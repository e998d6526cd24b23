"""As many inferences run at once as there are requests, and memory ends before they do.

Defect: `config.py:96` sets `MONAI_LABEL_INFER_CONCURRENCY` to -1, no limit. Upstream the
blocked event loop (see `blocking_endpoints`) hides it: one request ran at a time.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iopfl.base.running import running
from iopfl.compat._patching import once
from iopfl.compat.plain_errors import busy

WAITING_LIMIT = 16
"""Requests that may wait for their turn; well below the 40 threads that serve all endpoints."""

SENT = "(sent with the request)"
"""In place of a name: an upload or a session's image, which may be called by a patient's name."""


class InferenceQueue:
    """Lets a few inferences run, some wait, and refuses the rest.

    People take turns: whoever asked for many at once waits for everybody else's next one in between.

    Args:
        running: how many may run at once.
        waiting: how many more may wait.
    """

    def __init__(self, running: int, waiting: int = WAITING_LIMIT) -> None:
        self._free = running
        self._limit = waiting
        self._waiting: OrderedDict[str, deque[threading.Event]] = OrderedDict()  # whose turn is next comes first
        self._lock = threading.Lock()
        self._thread = threading.local()

    @contextmanager
    def turn(self, who: str = "") -> Iterator[None]:
        """Wait for a turn. Within a turn, another one of the same thread is free.

        Raises:
            MONAILabelException: too many wait already; the server answers 503.
        """
        if getattr(self._thread, "in_turn", False):
            yield
            return
        self._enter(who)
        self._thread.in_turn = True
        try:
            yield
        finally:
            self._thread.in_turn = False
            self._leave()

    def _enter(self, who: str) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            if sum(map(len, self._waiting.values())) >= self._limit:
                raise busy(f"{self._limit} inferences are waiting already: try again in a minute")
            mine = threading.Event()
            self._waiting.setdefault(who, deque()).append(mine)
        mine.wait()

    def _leave(self) -> None:
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            who, events = self._waiting.popitem(last=False)
            events.popleft().set()
            if events:
                self._waiting[who] = events  # at the end


def _name(request: dict[str, Any]) -> str:
    """What everybody reads of an image: an id, never where a file lies that somebody sent, nor its name."""
    image = str(request.get("image") or "")
    return SENT if "/" in image else image


@once
def apply() -> None:
    """Run one inference at a time, or as many as `MONAI_LABEL_INFER_CONCURRENCY` says."""
    from monailabel.config import settings
    from monailabel.interfaces.app import MONAILabelApp

    queue = InferenceQueue(max(1, settings.MONAI_LABEL_INFER_CONCURRENCY))
    original = MONAILabelApp.infer

    @functools.wraps(original)
    def infer(self: Any, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        who = str(request.get("client_id") or "")
        with running.follow(str(request.get("model")), _name(request), who), queue.turn(who):
            return original(self, request, datastore)

    MONAILabelApp.infer = infer
