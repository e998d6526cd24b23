"""A disk that is really full: a small file system in memory, for tests that may mount one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_FILL, _PAGE = "fill", 4096


class SmallDisk:
    """A file system of a few hundred kB.

    Attributes:
        path: where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, *, leave: int = 0) -> None:
        """Leave no page but so many."""
        with (self.path / _FILL).open("ab", buffering=0) as file:
            with contextlib.suppress(OSError):
                while file.write(bytes(_PAGE)):
                    pass
            file.truncate(file.tell() - leave * _PAGE)

    def clear(self) -> None:
        """Make room again."""
        (self.path / _FILL).unlink()


@contextlib.contextmanager
def small_disk(path: Path, *, size: str = "512k") -> Iterator[SmallDisk]:
    """Mount one; skips the test where that is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={size},mode=700"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "iopfl-test", path], capture_output=True)
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here: a full one is not tried")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
