"""Zip files from elsewhere, read within a bound: what an entry says of its own size is only what it says.

Python's `zipfile` unpacks all that an entry holds before it cuts to that size, and with bzip2 and LZMA whatever is
asked for: 900 bytes became gigabytes.
"""

from __future__ import annotations

import zipfile

_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""Those that are unpacked a bounded piece at a time."""


def check_methods(archive: zipfile.ZipFile) -> None:
    """Check that every entry can be unpacked piece by piece.

    Raises:
        zipfile.BadZipFile: an entry of another compression than deflate.
    """
    if any(entry.compress_type not in _METHODS for entry in archive.infolist()):
        raise zipfile.BadZipFile("expected entries stored or compressed by deflate, an entry is of another compression")


def read_entry(archive: zipfile.ZipFile, name: str, *, limit: int) -> bytes:
    """An entry's content, or the beginning of one that is longer than `limit` bytes.

    Raises:
        zipfile.BadZipFile: damaged, or of another compression than deflate.
        KeyError: no such entry.
    """
    check_methods(archive)
    with archive.open(name) as file:
        return file.read(min(limit + 1, archive.getinfo(name).file_size))
