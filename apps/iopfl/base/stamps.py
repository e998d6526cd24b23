"""What tells that a file has changed since it was last looked at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Stamp(NamedTuple):
    """Of a file as it is on the disk.

    Attributes:
        inode: another one once the file was replaced; not the same after a restore, so nothing that is kept has it.
        modified: when, in ns.
        size: in bytes.
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
