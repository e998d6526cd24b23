"""The names of the files in a folder, which are listed again when somebody changed it, and not for what we change."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

CLOCK_TICK_SECONDS = 0.05
"""A folder changed so recently may change again without a new time stamp."""

PATIENCE_SECONDS = 2.0
"""After a change of our own, how long another's of the same moment may go unnoticed, at least."""

_REST = 50.0
"""Times as long as listing a folder takes, that is not done again to look for such a change."""


class FolderNames:
    """Names of the files, or of the folders, in one folder.

    Attributes:
        path: the folder.
        names: what was found there last.
    """

    def __init__(self, path: Path, *, folders: bool = False) -> None:
        """Args:
        path: the folder; need not be there.
        folders: whether the names are those of the folders in it.
        """
        self.path = path
        self.names: set[str] = set()
        self._folders = folders
        self._changed = -1  # modification time (ns) that was seen
        self._is_settled = False
        self._look_at = 0.0
        self._took = 0.0  # seconds to list the folder

    def look(self) -> tuple[set[str], set[str]]:
        """Find out what was added and what was removed since the last time; one `stat` where nothing was."""
        changed = self._find_time()
        if changed == self._changed and (self._is_settled or time.monotonic() < self._look_at):
            return set(), set()
        started = time.monotonic()
        found = set(self._list())
        self._took = time.monotonic() - started
        added, removed = found - self.names, self.names - found
        self.names, self._changed, self._look_at = found, changed, 0.0
        self._is_settled = changed < time.time_ns() - int(CLOCK_TICK_SECONDS * 1e9)
        return added, removed

    def note(self, *, added: Iterable[str] = (), removed: Iterable[str] = ()) -> None:
        """Take note of a change of our own; `look` was called before it."""
        self.names |= set(added)
        self.names -= set(removed)
        self._changed, self._is_settled = self._find_time(), False
        self._look_at = time.monotonic() + max(PATIENCE_SECONDS, _REST * self._took)

    def _find_time(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _list(self) -> list[str]:
        try:
            with os.scandir(self.path) as entries:
                if self._folders:
                    return [entry.name for entry in entries if entry.is_dir()]
                # Hidden files are those that are being written.
                return [e.name for e in entries if not e.name.startswith(".") and (e.name in self.names or e.is_file())]
        except FileNotFoundError:
            return []
