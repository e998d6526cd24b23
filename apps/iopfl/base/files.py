"""Files that are there whole or not at all, whenever the machine stops, and what a killed process leaves of them.

Whoever writes a temporary file or folder holds a lock on it, which ends with the process, however it ends: what
nobody holds any more is a leftover, and `sweep` removes it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from iopfl.base.locks import lock

_OURS = ".iopfl-"
"""In the name of everything temporary: what lies beside it may be anybody's."""

MODE = 0o640
"""Of what we write, less what the umask takes away: images and labels are for the account and its group."""


def keep_others_out() -> None:
    """Have whatever this process makes, also others' code in it and its children, be for the account and its group."""
    os.umask(os.umask(0o077) | 0o027)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all: a temporary name in the same folder, then a rename."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it onto `path` on success, remove it otherwise."""
    with beside(path, suffix=path.suffix, mode=MODE) as temporary:
        mode = temporary.stat().st_mode
        yield temporary
        _finish(temporary, mode)
        temporary.replace(path)


@contextlib.contextmanager
def create(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; make it `path` on success, and have that on the disk.

    Raises:
        FileExistsError: `path` is there already; it stays as it is.
    """
    with beside(path, suffix=path.suffix, mode=MODE) as temporary:
        mode = temporary.stat().st_mode
        yield temporary
        _finish(temporary, mode)
        path.hardlink_to(temporary)
    try:
        sync_folder(path.parent)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def set_aside(path: Path) -> Path | None:
    """Rename a file that cannot be used to `<name>.damaged-<time>`; gives its new path, None where there is none."""
    target = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}")
    try:
        path.rename(target)
    except FileNotFoundError:
        return None
    return target


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Scratch:
    """A folder for a while, in which only this user reads: gone when it is removed, or with the next `sweep`."""

    def __init__(self, beside: Path) -> None:
        """Args:
        beside: what it is for; the folder is beside it, and has its name within its own.
        """
        beside.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f".{beside.name}{_OURS}", dir=beside.parent))
            if (descriptor := _hold(self.path)) is not None:
                self._descriptor = descriptor
                break

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()


_apart: Scratch | None = None


def keep_temporary_apart() -> None:
    """Have all temporary files of this process, also those of others' code, in one folder: once the process is gone, a
    `sweep` of `temporary_home` removes it."""
    global _apart  # one per process, as `tempfile.tempdir` is
    if _apart is None:
        _apart = Scratch(Path(tempfile.gettempdir(), "iopfl"))
        tempfile.tempdir = str(_apart.path)


def temporary_home() -> Path:
    """Where the folders of `keep_temporary_apart` are, of this process and of others."""
    return Path(tempfile.gettempdir()) if _apart is None else _apart.path.parent


def drop_temporary() -> None:
    """Remove this process's folder, if it has one."""
    global _apart
    if _apart is not None:
        tempfile.tempdir = str(temporary_home())
        _apart.remove()
        _apart = None


def sweep(folder: Path, *, deep: bool = False) -> int:
    """Remove what processes that were killed left in a folder.

    Args:
        folder: it, if it is there.
        deep: in the folders within it, too.

    Returns:
        How many files and folders were removed.
    """
    removed = 0
    for entry in _scan(folder):
        path = Path(entry)
        is_folder = entry.is_dir(follow_symlinks=False)
        if entry.name.startswith(".") and _OURS in entry.name and not entry.is_symlink():
            removed += _remove_if_left(path, is_folder=is_folder)
        elif deep and is_folder:
            removed += sweep(path, deep=True)
    return removed


def _scan(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # there is none, or it is not ours to read
        return []


def _remove_if_left(path: Path, *, is_folder: bool) -> bool:
    """Remove what nobody holds."""
    descriptor = _hold(path)
    if descriptor is None:
        return False
    try:
        if is_folder:
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _hold(path: Path) -> int | None:
    """Lock what a path names; None where somebody else has it, or has removed it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if lock(descriptor, wait=False) and os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
    os.close(descriptor)
    return None


@contextlib.contextmanager
def beside(path: Path, *, suffix: str = "", mode: int = 0o600) -> Iterator[Path]:
    """A temporary file in the same folder, held by this process, and removed if still there at the end.

    Args:
        path: what it is for.
        suffix: what its name ends in, for who goes by that.
        mode: its mode, from the first byte on, less what the umask takes away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = None
    while held is None:
        temporary = path.parent / f".{path.name}{_OURS}{secrets.token_hex(4)}{suffix}"
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode))
        held = _hold(temporary)  # a sweep may have been faster
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
        os.close(held)


def _finish(temporary: Path, mode: int) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.chmod(stat.S_IMODE(mode))  # whoever wrote it may have made it anew
