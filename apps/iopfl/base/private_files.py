"""Files that only the server's own account may read: keys, users, the audit log."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from iopfl.base.files import sync_folder


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, whole or not at all, and on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = _write_beside(path, content)
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_or_make_key(path: Path, size: int = 32) -> bytes:
    """The random key in a file; made on first use, by one process of several."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = _write_beside(path, secrets.token_bytes(size))
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            pass  # another process was first: its key counts
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    return path.read_bytes()


def _write_beside(path: Path, content: bytes) -> Path:
    """A temporary file beside `path`; `mkstemp` makes it 0600."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
