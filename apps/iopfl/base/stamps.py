"""What tells that a file has changed since it was last looked at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Stamp(NamedTuple):
    """How a file was on the disk when it was looked at.

    Attributes:
        inode: changes when the file is replaced; also by a restore, so it is not part of what is kept (`kept`).
        modified: when its content changed last, in ns since 1970.
        size: its length in bytes.
    """

    inode: int
    modified: int
    size: int

    @property
    def kept(self) -> tuple[int, int]:
        """What may be written down, and compared after a restart or a restore."""
        return self.modified, self.size


def find_stamp(path: Path) -> Stamp | None:
    """A file's stamp; None = it is not there.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return Stamp(status.st_ino, status.st_mtime_ns, status.st_size)
