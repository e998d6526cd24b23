"""How far one answer is, how long it will take, and whether it is still wanted."""

from __future__ import annotations

import time
from collections.abc import Callable

from iopfl.base.errors import CancelledError

Progress = Callable[[int, int, float | None], None]
"""Told passes of the network done, passes in all, and the seconds that all of them take, None where nothing tells yet.

A pass is over one slice, or one window of a volume.
"""

_TIMED = 16
"""Passes after which these, and not what was measured before, say how long all take."""


class Work:
    """Counts the passes of one answer.

    Args:
        progress: told after each few passes.
        cancelled: asked as often.
        clock: seconds.
    """

    def __init__(
        self,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress, self._cancelled, self._clock = progress, cancelled, clock
        self._done = self._total = self._later = 0
        self._begun: float | None = None
        self._pace: float | None = None

    @property
    def pace(self) -> float | None:
        """Seconds a pass, as these passes took, or as was said before there were enough."""
        if self._begun is None or self._done < _TIMED:
            return self._pace
        return (self._clock() - self._begun) / self._done

    def reserve(self, passes: int) -> None:
        """Say how many passes will come after those that are expected next."""
        self._later = passes

    def expect(self, passes: int, pace: float | None = None) -> None:
        """Say how many passes are still to come, and what one took before, in seconds.

        Raises:
            CancelledError: nobody waits for the answer any more.
        """
        self._total, self._pace = self._done + passes + self._later, self._pace if pace is None else pace
        self._begun = self._clock() if self._begun is None else self._begun
        self.count(0)

    def count(self, passes: int) -> None:
        """Count passes that are done.

        Raises:
            CancelledError: nobody waits for the answer any more.
        """
        if self._cancelled():
            raise CancelledError("stopped; nothing of this image was kept")
        self._done += passes
        self._total = max(self._total, self._done)
        if self._progress is not None and self._total:
            pace = self.pace
            self._progress(self._done, self._total, None if pace is None else pace * self._total)
