"""How far one image is, on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

_TIMED = 8
"""Passes after which it is said how long all will take."""
_LONG = 60.0
"""Seconds above which that is worth a line, also in a log."""


class PassBar:
    """A bar of an image's passes on stderr, and of a large image a line that says beforehand what it will take.

    Args:
        name: of the image.
        clock: seconds.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._begun: float | None = None
        self._is_said = False
        self._bar = tqdm(desc=name, unit="pass", leave=False, disable=None)

    def __enter__(self) -> PassBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, done: int, total: int) -> None:
        """Show passes done, and in all."""
        self._begun = self._clock() if self._begun is None else self._begun
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if self._is_said or done < min(_TIMED, total):
            return
        self._is_said = True
        expected = (self._clock() - self._begun) * total / done
        if expected >= _LONG:
            line = f"{self._name}: {total} passes of the network, about {expected / 60:.0f} min on this machine"
            self._bar.write(line, file=sys.stderr)
