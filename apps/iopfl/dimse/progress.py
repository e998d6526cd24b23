"""How far the series that is being segmented is, in a file beside the queue: another process lists it."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

from iopfl.base.private_files import write_private
from iopfl.core import work

Tell = work.Progress

WORK = "work"
"""Folder of the service in which the work at hand is."""
_FILE = "progress.json"
_SECONDS = 1.0  # between two writings


class Progress(NamedTuple):
    """Of one series.

    Attributes:
        series: Series Instance UID.
        done: passes of the network so far.
        passes: in all.
        expected: seconds that they take in all; None = not known yet.
    """

    series: str
    done: int
    passes: int
    expected: float | None

    def __str__(self) -> str:
        left = "" if self.expected is None else f", {self.expected * (1 - self.done / self.passes):.0f} s left"
        return f"{100 * self.done / self.passes:.0f} %{left}"


class ProgressFile:
    """Takes down how far a series is, as long as the context lasts.

    Args:
        folder: where the work at hand is kept, the file in it; emptied at the start.
        series: Series Instance UID.
    """

    def __init__(self, folder: Path, series: str) -> None:
        self._path, self._series = folder / _FILE, series
        self._due = 0.0

    def __enter__(self) -> Tell:
        return self.show

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def show(self, done: int, total: int, expected: float | None) -> None:
        """Take down passes done, in all, and the seconds that these take: now and then."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _SECONDS
            write_private(self._path, json.dumps(Progress(self._series, done, total, expected)).encode())


def read_progress(folder: Path) -> Progress | None:
    """What was last taken down in a folder of work; None = nothing is being segmented."""
    try:
        series, done, passes, expected = json.loads((folder / _FILE).read_bytes())
        found = Progress(str(series), int(done), int(passes), None if expected is None else float(expected))
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    is_sound = 0 <= found.done <= found.passes > 0 and (found.expected is None or math.isfinite(found.expected))
    return found if is_sound else None
