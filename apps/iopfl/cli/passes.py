"""How far one image is, on the terminal."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm

from iopfl.core.work import Progress

_LONG = 60.0
"""Seconds from which it is worth a line, also in a log, how long an image will take."""


class PassBar:
    """A bar of an image's passes on stderr, and of a large image a line that says beforehand what it will take.

    Args:
        name: the name of the image.
    """

    def __init__(self, name: str) -> None:
        self._name, self._is_said = name, False
        self._bar = tqdm(desc=name, unit="pass", leave=False, disable=None)

    def __enter__(self) -> Progress:
        return self.show

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, done: int, total: int, expected: float | None) -> None:
        """Show passes done, and in all."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if self._is_said or expected is None:
            return
        self._is_said = True
        if expected >= _LONG:
            line = f"{self._name}: {total} passes of the network, about {expected / 60:.0f} min on this machine"
            self._bar.write(line, file=sys.stderr)
