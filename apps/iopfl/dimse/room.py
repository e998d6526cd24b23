"""How much of the disk received series may take, all together: what lies there and what is just coming."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

from iopfl.base.errors import SeriesError

_KEPT_SHARE = 0.9  # of the room that finished series may fill
_INODES_KEPT = 50  # one of so many stays free
_FREE_SHARE, _FREE_BYTES = 20, 10 * 10**9


class InboxFullError(SeriesError):
    """There is no room for another instance."""


def default_min_free(folder: Path) -> int:
    """Bytes of a folder's disk that stay free unless somebody wants it otherwise: a twentieth, at most 10 GB."""
    return min(shutil.disk_usage(folder).total // _FREE_SHARE, _FREE_BYTES)


class Room:
    """Keeps account. For several threads.

    Args:
        folder: on the disk.
        max_bytes: the largest size, in bytes, of everything together; None = as the disk has it.
        min_free: bytes of the disk that are left to others.

    Attributes:
        stored: bytes that lie there.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None, min_free: int) -> None:
        self._folder, self.max_bytes, self.min_free = folder, max_bytes, min_free
        self._lock = threading.RLock()  # again by the same thread where it collects garbage
        self.stored, self._coming = 0, 0

    @property
    def is_crowded(self) -> bool:
        """Whether series that are finished should make room for others."""
        if self.max_bytes is not None and self.stored > self.max_bytes * _KEPT_SHARE:
            return True
        return self._free_bytes() * _KEPT_SHARE < self.min_free

    def reserve(self, count: int) -> None:
        """Set room aside for bytes that are coming.

        Raises:
            InboxFullError: there is none.
        """
        with self._lock:
            held = self.stored + self._coming
            if self.max_bytes is not None and held + count > self.max_bytes:
                raise InboxFullError(f"the inbox holds {held} bytes, at most {self.max_bytes}")
            if self.min_free and self._free_bytes() - count < self.min_free:
                raise InboxFullError(f"the disk is full up to the {self.min_free} bytes that stay free")
            self._coming += count

    def release(self, count: int) -> None:
        """Give back what was set aside: it did not come, or lies there now."""
        with self._lock:
            self._coming -= count

    def _free_bytes(self) -> int:
        """Of the disk; 0 where it takes hardly another file."""
        disk = os.statvfs(self._folder)
        takes_files = disk.f_favail * _INODES_KEPT >= disk.f_files  # 0 of 0 where they are not counted
        return disk.f_bavail * disk.f_frsize if takes_files else 0
