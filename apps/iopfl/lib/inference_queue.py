"""Whose turn it is to infer: a few run at once, some wait, the rest are refused."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from iopfl.base.errors import BusyError

WAITING_LIMIT = 16
"""Requests that may wait for their turn; well below the 40 threads that serve all endpoints."""


class _Place(threading.Event):
    """A place among those who wait; it is set once it is this one's turn, or once it was given to somebody else."""

    is_lost = False


class InferenceQueue:
    """Lets a few inferences run, some wait, and refuses the rest.

    People take turns: whoever asked for many at once waits for everybody else's next one in between, and where all
    places are taken, loses the newest of them to somebody who has fewer.

    Args:
        running: how many may run at once.
        waiting: how many more may wait.
    """

    def __init__(self, running: int, waiting: int = WAITING_LIMIT) -> None:
        self._free = running
        self._limit = waiting
        self._waiting: OrderedDict[str, deque[_Place]] = OrderedDict()  # whose turn is next comes first
        self._lock = threading.Lock()
        self._thread = threading.local()

    @contextmanager
    def turn(self, who: str = "") -> Iterator[None]:
        """Wait for a turn. Within a turn, another one of the same thread is free.

        Raises:
            BusyError: too many wait already.
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
                self._make_room(who)
            mine = _Place()
            self._waiting.setdefault(who, deque()).append(mine)
        mine.wait()
        if mine.is_lost:
            raise self._busy()

    def _make_room(self, who: str) -> None:
        """Take a place from whoever has most, if that is somebody who would still have as many as this one."""
        places = max(self._waiting.values(), key=len)
        if len(places) <= len(self._waiting.get(who, ())) + 1:
            raise self._busy()
        newest = places.pop()
        newest.is_lost = True
        newest.set()

    def _busy(self) -> BusyError:
        return BusyError(f"{self._limit} inferences are waiting already: try again in a minute")

    def _leave(self) -> None:
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            who, events = self._waiting.popitem(last=False)
            events.popleft().set()
            if events:
                self._waiting[who] = events  # at the end
