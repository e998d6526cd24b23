"""How far one answer is, and whether it is still wanted."""

from __future__ import annotations

from collections.abc import Callable

from iopfl.base.errors import CancelledError

Progress = Callable[[int, int], None]
"""Told passes of the network done and passes in all; a pass is over one slice, or one window of a volume."""


class Work:
    """Counts the passes of one answer.

    Args:
        progress: told after each few passes.
        cancelled: asked as often.
    """

    def __init__(self, progress: Progress | None = None, cancelled: Callable[[], bool] = lambda: False) -> None:
        self._progress, self._cancelled = progress, cancelled
        self._done = self._total = 0

    def expect(self, passes: int) -> None:
        """Say how many passes are still to come.

        Raises:
            CancelledError: nobody waits for the answer any more.
        """
        self._total = self._done + passes
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
            self._progress(self._done, self._total)
