"""What is being computed for whom: how far each answer is, and how to stop one that nobody waits for."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

has_left: ContextVar[Callable[[], bool]] = ContextVar("has_left", default=lambda: False)
"""Says whether who asked for the request at hand has gone away."""
asked_by: ContextVar[Callable[[], str]] = ContextVar("asked_by", default=lambda: "")
"""Says who signed in for the request at hand; empty = nobody has to."""
_mine: ContextVar[Answering | None] = ContextVar("answering", default=None)


@dataclass
class Answering:
    """One answer that is asked for.

    Attributes:
        task: what is asked for, e.g. a model's name.
        image: id of the image.
        who: asked for it; empty = somebody.
        number: names it.
        done: passes of the network so far.
        total: passes in all; 0 = it waits, or the image is being read.
        expected: seconds that they take in all; None = not known yet.
    """

    task: str
    image: str
    who: str = ""
    number: str = field(default_factory=lambda: secrets.token_hex(8))
    done: int = 0
    total: int = 0
    expected: float | None = None
    _asked: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)
    _left: Callable[[], bool] = lambda: False

    def progress(self, done: int, total: int, expected: float | None) -> None:
        """Take down passes done, in all, and the seconds that these take."""
        self.done, self.total, self.expected = done, total, expected

    def cancelled(self) -> bool:
        """Whether it is to be stopped."""
        return self._stop.is_set() or self._left()

    def cancel(self) -> None:
        """Have it stopped after the pass at hand."""
        self._stop.set()

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        now = time.monotonic()
        return {
            "id": self.number,
            "task": self.task,
            "image": self.image,
            "state": "computing" if self.total else "waiting",
            "done": self.done,
            "passes": self.total,
            "percent": round(100 * self.done / self.total, 1) if self.total else 0.0,
            "elapsed": round(now - self._asked, 1),
            "expected": None if self.expected is None else round(self.expected, 1),
        }


class Running:
    """All answers of a process that are asked for and not there yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answering: dict[str, Answering] = {}

    @contextmanager
    def follow(self, task: str, image: str, who: str = "") -> Iterator[Answering]:
        """List an answer for as long as the block lasts; within another one's block, that is it."""
        if (outer := _mine.get()) is not None:
            yield outer
            return
        mine = Answering(task, image, asked_by.get()() or who, _left=has_left.get())
        with self._lock:
            self._answering[mine.number] = mine
        token = _mine.set(mine)
        try:
            yield mine
        finally:
            _mine.reset(token)
            with self._lock:
                del self._answering[mine.number]

    def answers(self) -> list[Answering]:
        """Those that are asked for, the longest first."""
        with self._lock:
            return list(self._answering.values())

    def find(self, number: str) -> Answering | None:
        """The one of a number, unless it is there by now."""
        with self._lock:
            return self._answering.get(number)


running = Running()
"""Of this process."""
