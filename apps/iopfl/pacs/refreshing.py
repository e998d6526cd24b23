"""Keeping something new that takes a while to find out, without keeping anybody waiting for it longer than need be."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from iopfl.base.errors import IOPFLError

logger = logging.getLogger(__name__)

_REST = 2.0
"""Times as long as a renewal took, the next one is not due: whoever is asked may be slow because they are asked."""


class Refreshing:
    """Runs a renewal in a thread of its own, one at a time, and no more often than is useful.

    Attributes:
        problem: why the last renewal failed; "" = it did not.
    """

    def __init__(self, renew: Callable[[], None], *, seconds: float) -> None:
        """Args:
        renew: what to run.
        seconds: for how long what it found is new enough.
        """
        self.problem = ""
        self._renew = renew
        self._seconds = seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._due = 0.0
        self._renewed = -math.inf

    @property
    def age(self) -> float:
        """Seconds since the last renewal that worked; infinite without any."""
        return time.monotonic() - self._renewed

    def refresh(self, *, wait: float) -> None:
        """Start a renewal if one is due.

        Args:
            wait: seconds to wait for the renewal that runs; the one that runs it does not wait for itself.
        """
        with self._lock:
            if self._thread is None and time.monotonic() >= self._due:
                self._thread = threading.Thread(target=self._run, name="refresh", daemon=True)
                self._thread.start()
            thread = self._thread
        if thread is not None and wait > 0 and thread is not threading.current_thread():
            thread.join(wait)

    def _run(self) -> None:
        started = time.monotonic()
        problem = ""
        try:
            self._renew()
        except IOPFLError as error:
            problem = str(error)
        except Exception as error:
            logger.exception("a renewal failed")
            problem = f"the server failed with {type(error).__name__}: see its log"
        if problem and problem != self.problem:
            logger.warning("%s", problem)
        elif self.problem and not problem:
            logger.info("it answers again")
        with self._lock:
            ended = time.monotonic()
            self.problem, self._thread = problem, None
            self._renewed = self._renewed if problem else ended
            self._due = ended + max(self._seconds, _REST * (ended - started))
