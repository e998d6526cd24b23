"""Locks that the operating system releases when their process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from iopfl.base.errors import CancelledError

_POLL_SECONDS = 0.2


def lock(descriptor: int, *, wait: bool = True, shared: bool = False) -> bool:
    """Lock an open file or folder until its descriptor is closed.

    Args:
        descriptor: its file descriptor.
        wait: for whoever has it.
        shared: with others who ask so.

    Returns:
        Whether it is locked: False only without `wait`, where another has it.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _try_lock(path: Path) -> int | None:
    """Descriptor of the locked file, or None where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if lock(descriptor, wait=False):
        return descriptor
    os.close(descriptor)
    return None


@contextlib.contextmanager
def try_hold(path: Path) -> Iterator[int | None]:
    """Hold a lock file at once, or give None. A child that inherits the descriptor holds it too."""
    descriptor = _try_lock(path)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Wait for a folder's lock, and hold it; no file is left behind."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_one(paths: list[Path], *, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """Wait for, and hold, any one of several lock files: as many holders at once as there are files.

    Raises:
        CancelledError: `cancelled` said so while waiting.
    """
    while True:
        for path in paths:
            descriptor = _try_lock(path)
            if descriptor is not None:
                try:
                    yield path
                finally:
                    os.close(descriptor)
                return
        if cancelled():
            raise CancelledError("stopped while waiting for a turn")
        time.sleep(_POLL_SECONDS)
