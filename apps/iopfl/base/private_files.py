"""Files that only the server's own account may read: keys, users, the audit log.

They have mode 0600 from their first byte, whatever the umask, in folders of mode 0700. What came loose,
as a copy from a backup does, is mended where it is met, and said.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from iopfl.base.errors import ConfigError, LostKeyError
from iopfl.base.files import beside, sync_folder

logger = logging.getLogger(__name__)

KEY_BYTES = 32
_FINGERPRINT = ".id"


def make_private(folder: Path) -> None:
    """Make a folder of mode 0700, and so each that is missing above it."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600, whole or not at all, and on the disk when this returns."""
    make_private(path.parent)
    with _written_beside(path, content) as temporary:
        temporary.replace(path)
    sync_folder(path.parent)


def read_private(path: Path) -> bytes:
    """Read a file of ours, and mend its mode.

    Raises:
        ConfigError: others can read it, and that is not ours to mend.
        OSError: it is not there, or cannot be read.
    """
    protect(path)
    return path.read_bytes()


def protect(path: Path) -> None:
    """Take from a file or folder of ours what other accounts may do with it, and say so.

    Raises:
        ConfigError: it is another account's to mend.
        FileNotFoundError: it is not there.
    """
    status = path.stat()
    if not status.st_mode & 0o077:
        return
    mode, right = f"{stat.S_IMODE(status.st_mode):o}", "700" if stat.S_ISDIR(status.st_mode) else "600"
    try:
        path.chmod(int(right, 8))
    except OSError as error:
        raise ConfigError(
            f"{path}: expected mode {right}, so that no other account opens it, found {mode}, "
            f"which cannot be mended ({error.strerror}): give it to the account that the server runs under, "
            f"and chmod {right} it"
        ) from error
    logger.warning(
        "%s could be opened by other accounts of this machine (mode %s): mended to %s; "
        "if others were on this machine meanwhile, take what it holds as known to them",
        path,
        mode,
        right,
    )


def read_secret(path: Path) -> str:
    """Read a secret that an administrator wrote: a password, a token.

    Raises:
        ConfigError: it cannot be read, or others can read it too.
    """
    try:
        check_unread_by_others(path)
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ConfigError(f"{path}: expected a secret, {reason}") from error


def check_unread_by_others(path: Path) -> None:
    """Check the mode of a secret that an administrator wrote. Root's may be readable by the group, as in `ssl-cert`.

    Raises:
        ConfigError: others can read it.
        OSError: it is not there.
    """
    status = path.stat()
    allowed = 0o740 if status.st_uid == 0 else 0o700
    if status.st_mode & 0o777 & ~allowed:
        raise ConfigError(f"{path}: others may read this secret; expected mode 600: chmod 600 {path}")


def read_or_make_key(path: Path) -> bytes:
    """The random key in a file, 32 bytes; made on first use, by one process of several.

    A fingerprint of it is kept beside it: with a key that was lost nothing goes on as if there had been none.

    Raises:
        LostKeyError: it is cut short, gone, or another one; `replace_key` makes a new one.
    """
    known = _read_fingerprint(path)
    if known is None and not path.exists():
        _make_key(path)
    try:
        key = read_private(path)
    except FileNotFoundError:
        raise LostKeyError(f"{path} is gone: bring it back from a backup") from None
    if len(key) != KEY_BYTES:
        raise LostKeyError(
            f"{path}: expected a key of {KEY_BYTES} bytes, found {len(key)}: bring it back from a backup"
        )
    if known is None:
        with contextlib.suppress(OSError):  # a disk that is only read has no key made on it either
            write_private(path.with_suffix(_FINGERPRINT), fingerprint(key).encode())
    elif known != fingerprint(key):
        raise LostKeyError(f"{path}: expected the key whose fingerprint is {known}, found another: see the backup")
    return key


def replace_key(path: Path) -> bytes:
    """Make a new key in place of a lost one; whoever reads the file has the old or the new one."""
    path.with_suffix(_FINGERPRINT).unlink(missing_ok=True)
    write_private(path, secrets.token_bytes(KEY_BYTES))
    return read_or_make_key(path)


def fingerprint(key: bytes) -> str:
    """What a key is known by, without a way back to it: 16 hexadecimal digits."""
    return hashlib.sha256(b"fingerprint" + key).hexdigest()[:16]


def _make_key(path: Path) -> None:
    make_private(path.parent)
    with (
        _written_beside(path, secrets.token_bytes(KEY_BYTES)) as temporary,
        contextlib.suppress(FileExistsError),  # another process was first: its key counts
    ):
        path.hardlink_to(temporary)
    sync_folder(path.parent)


def _read_fingerprint(path: Path) -> str | None:
    """Of the key that was; None = there was none, or the fingerprint itself is damaged."""
    try:
        text = path.with_suffix(_FINGERPRINT).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if len(text) == 16 else None


@contextlib.contextmanager
def _written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """A temporary file beside `path`, on the disk, that `sweep` knows."""
    with beside(path) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
