"""Archives that clients upload: looked through before they are unpacked, by the same eyes that unpack them."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

from fastapi import HTTPException

from iopfl.base.archives import check_methods
from iopfl.base.errors import StorageError

MAX_UNPACKED = 8 * 2**30
"""Bytes in an archive: a small one may hold more than the disk."""

MAX_MEMBERS = 20_000
"""Files and folders in an archive: a small one may hold millions, each of which takes an inode and time."""

MAX_FOLDERS = 16
"""Folders within folders: what removes them would end at Python's limit of recursion."""

_MAX_HEADER = 2**20
"""Bytes of an extended header, which tarfile takes into memory as a whole."""
_MAX_LIST = 2**23
"""Bytes of a zip's list of members, which zipfile takes into memory as a whole."""
_FREE_SHARE, _FREE_BYTES = 20, 10 * 10**9
"""Of the disk, a twentieth or 10 GB stay free for what must be written."""
_EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive that is small enough into a folder.

    The same question decides how it is looked through and how it is unpacked, and its name has no part in it: a
    file can be a tar at its beginning and a zip at its end.

    Raises:
        HTTPException: 400, it holds too much.
        StorageError: there is no room for it.
        Exception: one of `shutil`'s, `tarfile`'s or `zipfile`'s many; it is no archive, or not whole.
    """
    is_zip = zipfile.is_zipfile(archive)
    size = _count(_zip_members(archive) if is_zip else _tar_members(archive))
    check_room(folder, size)
    shutil.unpack_archive(archive, folder, "zip" if is_zip else "tar")
    _remove_hidden(folder)


def check_room(folder: Path, size: int) -> None:
    """Check that a disk has room for what somebody uploaded and something else.

    Args:
        folder: on the disk.
        size: bytes of it that will be written.

    Raises:
        StorageError: it has not.
    """
    disk = shutil.disk_usage(folder)
    if disk.free - size < min(disk.total // _FREE_SHARE, _FREE_BYTES):
        raise StorageError(
            f"the server's disk has no room for {size} bytes more: make room there, or end sessions that are done"
        )


def _count(members: Iterable[tuple[str, int]]) -> int:
    """Bytes of all members.

    Raises:
        HTTPException: they are too large, too many, or too deep.
    """
    size = 0
    for number, (name, member_size) in enumerate(members, 1):
        size += member_size
        if size > MAX_UNPACKED:
            _refuse(f"at most {MAX_UNPACKED} bytes when unpacked")
        if number > MAX_MEMBERS:
            _refuse(f"at most {MAX_MEMBERS} files and folders")
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or "/" in parts or ":" in "".join(parts[:1]):
            _refuse("names of files within it, none that leads elsewhere")
        if len(parts) > MAX_FOLDERS:
            _refuse(f"at most {MAX_FOLDERS} folders within each other")
    return size


def _zip_members(archive: Path) -> Iterator[tuple[str, int]]:
    with archive.open("rb") as file:
        listed = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # what ZipFile goes by, before it makes objects
    if listed is None or listed[5] > _MAX_LIST:
        _refuse(f"at most {MAX_MEMBERS} files and folders")
    with zipfile.ZipFile(archive) as packed:
        check_methods(packed)
        yield from ((member.filename, member.file_size) for member in packed.infolist())


def _tar_members(archive: Path) -> Iterator[tuple[str, int]]:
    with tarfile.open(archive, tarinfo=_Member) as packed:
        for member in packed:
            if not (member.isfile() or member.isdir()):
                _refuse("files and folders alone, no links and no devices")
            yield member.name, member.size


def _remove_hidden(folder: Path) -> None:
    """What macOS and editors put beside files is no image, and is not kept."""
    for path in sorted(folder.rglob(".*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class _Member(tarfile.TarInfo):
    """A member whose headers are not read if they are longer than any that is meant."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type == tarfile.GNUTYPE_SPARSE:
            _refuse("no sparse files")
        if member.type in _EXTENDED and member.size > _MAX_HEADER:
            _refuse(f"names and headers of at most {_MAX_HEADER} bytes")
        return member

    def _proc_gnusparse_10(self, next: tarfile.TarInfo, pax_headers: dict[str, str], tar: IO[bytes]) -> NoReturn:
        """Where the map of a sparse file comes before its data, and has no end but a line's."""
        _refuse("no sparse files")


def _refuse(expected: str) -> NoReturn:
    raise HTTPException(400, f"expected an archive with {expected}")
