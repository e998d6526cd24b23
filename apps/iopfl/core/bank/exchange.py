"""Versions of a bank, and banks on their way between sites: roll back, export, import, compare."""

from __future__ import annotations

import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from iopfl.base.archives import read_entry
from iopfl.base.errors import BankError
from iopfl.base.files import Scratch, replacing, write_bytes
from iopfl.base.locks import hold_folder
from iopfl.core.bank.bank import ModelBank, check_same_task
from iopfl.core.bank.manifest import (
    MANIFEST,
    Manifest,
    checked_name,
    list_versions,
    read_manifest,
    serve_manifest,
)
from iopfl.core.bank.signing import Keyring
from iopfl.core.networks import build_network
from iopfl.core.task import Task
from iopfl.core.weights import serialize

SUFFIX = ".iopfl"
_MAX_MANIFEST = 16 * 2**20  # bytes; a manifest is a few kB per site
_MAX_HEADER = 2**20  # bytes by which an entry's header may be longer than ours
_MAX_FRAME = 2**20  # bytes of the zip around its entries
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
"""Before each entry of a zip: APPNOTE.TXT of PKWARE, section 4.3.7."""
_LOCAL_MAGIC = b"PK\x03\x04"
_ODD_FLAGS = 0b1001
"""Encrypted; of a size that is told after the content."""
_UNREADABLE = (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, NotImplementedError, RuntimeError)
"""What `zipfile` raises on damaged, encrypted or oddly compressed archives."""


def rollback_bank(folder: Path, version: int) -> ModelBank:
    """Serve an older version again, after verifying it; nothing is deleted.

    Raises:
        BankError: no such version, or it is damaged.
    """
    read_manifest(folder, version=version)
    with hold_folder(folder):  # else it could be pruned once it was verified
        bank = ModelBank.open(folder, version=version)
        write_bytes(folder / MANIFEST, bank.manifest.to_json())
    return bank


def export_bank(folder: Path, target: Path) -> ModelBank:
    """Write the served version as one `.iopfl` zip, after verifying it.

    Raises:
        BankError: the bank is damaged, or the target's name does not end in `.iopfl`.
    """
    if target.suffix != SUFFIX:
        raise BankError(f"{target.name}: expected a name ending in {SUFFIX}")
    bank = ModelBank.open(folder)
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(MANIFEST, bank.manifest.to_json())
        for file in _files(bank.manifest):
            archive.write(folder / file, file)
    return bank


def import_bank(source: Path, folder: Path, *, keys: Keyring, task: Task | None = None) -> ModelBank:
    """Verify an `.iopfl` file and make it the served version of a bank folder, or change nothing.

    Only `rollback_bank` goes back: a bank that was signed once stays signed, and whoever may bring one
    must not choose an old one.

    Raises:
        BankTrustError: its signer is not trusted, or it was altered.
        BankError: no whole bank, or older than what the folder has or had.
    """
    with Scratch(folder) as staging:
        try:
            with zipfile.ZipFile(source) as archive:
                content = read_entry(archive, MANIFEST, limit=_MAX_MANIFEST)
                # Nothing of a stranger's file touches the disk before its signer is known.
                manifest = _check_manifest(content, source.name, keys)
                # The manifest signs no sizes, and a swapped entry must not fill the disk before its checksum is seen.
                limit = _entry_limit(manifest)
                for entry in manifest.entries:
                    size = archive.getinfo(checked_name(entry, source.name)).file_size
                    if size > limit:
                        raise BankError(
                            f"{source.name}: entry {entry.name} is of {size} bytes, more than its network's weights "
                            f"({limit}): the file was altered"
                        )
                    with (
                        archive.open(checked_name(entry, source.name)) as packed,
                        (staging / entry.file).open("wb") as file,
                    ):
                        shutil.copyfileobj(packed, file)
        except _UNREADABLE as error:
            raise BankError(f"{source.name}: expected a whole {SUFFIX} file of a bank: {error}") from error
        write_bytes(staging / MANIFEST, manifest.to_json())
        ModelBank.open(staging, task=task, keys=keys)
        return _adopt(staging, folder, manifest)


class ArrivingBank:
    """Looks at an `.iopfl` file while it arrives: whose it is, and that no more comes than its manifest lists.

    `export_bank` writes the manifest first, so nobody has to keep gigabytes before they know who signed them.
    """

    def __init__(self, what: str, *, keys: Keyring, task: Task | None = None) -> None:
        """Args:
        what: its name in errors.
        keys: whose signers are trusted.
        task: that it must be for; None = any.
        """
        self._what = what
        self._keys = keys
        self._task = task
        self._head = bytearray()
        self._size = 0
        self._limit: int | None = None

    def take(self, piece: bytes) -> None:
        """Look at the next piece, before it is written; `import_bank` checks the whole.

        Raises:
            BankTrustError: its signer is not trusted, or its manifest was altered.
            BankError: no bank with its manifest first, for another task, or longer than its entries.
        """
        self._size += len(piece)
        if self._limit is None:
            self._head += piece
            content = _read_first_entry(self._head, self._what)
            if content is None:
                return
            manifest = _check_manifest(content, self._what, self._keys)
            if self._task is not None:
                check_same_task(manifest.task, self._task, self._what)
            self._limit = len(content) + len(_files(manifest)) * _entry_limit(manifest) + _MAX_FRAME
            self._head.clear()
        if self._size > self._limit:
            raise BankError(
                f"{self._what}: expected at most {self._limit} bytes, as its manifest lists models, more came: it was "
                "altered"
            )


def diff_banks(first: ModelBank, second: ModelBank) -> dict[str, Any]:
    """What differs between two versions or banks: task fields, entries added, removed and changed."""
    ours = {entry.name: entry for entry in first.manifest.entries}
    theirs = {entry.name: entry for entry in second.manifest.entries}
    task, other = first.task.to_dict(), second.task.to_dict()
    return {
        "task": {k: [task.get(k), other.get(k)] for k in {**task, **other} if task.get(k) != other.get(k)},
        "added": sorted(set(theirs) - set(ours)),
        "removed": sorted(set(ours) - set(theirs)),
        "changed": sorted(n for n in set(ours) & set(theirs) if ours[n].sha256 != theirs[n].sha256),
        "metrics": {
            name: [dict(ours[name].metrics), dict(theirs[name].metrics)]
            for name in sorted(set(ours) & set(theirs))
            if ours[name].metrics != theirs[name].metrics
        },
    }


def _files(manifest: Manifest) -> list[str]:
    """Each file of a version once: equal models share one."""
    return sorted({entry.file for entry in manifest.entries})


def _check_manifest(content: bytes, what: str, keys: Keyring) -> Manifest:
    """A manifest whose signer is trusted."""
    if len(content) > _MAX_MANIFEST:
        raise BankError(f"{what}: its manifest is larger than {_MAX_MANIFEST} bytes: no bank of iopfl")
    manifest = Manifest.from_json(content, what=what)
    keys.check(manifest.signed_content(), signature=manifest.signature, signer=manifest.signer, what=what)
    return manifest


def _entry_limit(manifest: Manifest) -> int:
    """Bytes that an entry's file may have."""
    return len(serialize(build_network(manifest.task).state_dict())) + _MAX_HEADER


def _read_first_entry(head: bytearray, what: str) -> bytes | None:
    """The manifest at the start of an `.iopfl` file; None while too little of it is here."""
    refusal = BankError(f"{what}: expected a whole {SUFFIX} file of a bank, its {MANIFEST} first")
    if head[: len(_LOCAL_MAGIC)] != _LOCAL_MAGIC[: len(head)]:
        raise refusal
    if len(head) < _LOCAL_HEADER.size:
        return None
    _, _, flags, method, _, _, _, packed, size, name, extra = _LOCAL_HEADER.unpack_from(head)
    begin = _LOCAL_HEADER.size + name + extra
    if flags & _ODD_FLAGS or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or name != len(MANIFEST):
        raise refusal
    if max(packed, size) > _MAX_MANIFEST:
        raise BankError(f"{what}: its manifest is larger than {_MAX_MANIFEST} bytes: no bank of iopfl")
    if len(head) < begin + packed:
        return None
    if head[_LOCAL_HEADER.size :][:name] != MANIFEST.encode():
        raise refusal
    content = bytes(head[begin : begin + packed])
    try:
        unpack = zlib.decompressobj(-zlib.MAX_WBITS).decompress
        return content if method == zipfile.ZIP_STORED else unpack(content, _MAX_MANIFEST + 1)
    except zlib.error as error:
        raise refusal from error


def _adopt(staging: Path, folder: Path, manifest: Manifest) -> ModelBank:
    """Move a verified bank's files into a folder and serve it; entries first, so that no version lacks one."""
    folder.mkdir(parents=True, exist_ok=True)
    with hold_folder(folder):  # else an older one could overtake a newer one between check and rename
        versions = list_versions(folder)
        newest = max(versions, default=0)
        if manifest.version < newest:
            raise BankError(
                f"expected version {newest} or a newer one, as {folder.name} has {newest}, given version "
                f"{manifest.version}: to serve an older one, its administrator says iopfl bank rollback; a bank of "
                "another origin goes into a new folder"
            )
        if (
            manifest.version in versions
            and read_manifest(folder, version=newest).signed_content() != manifest.signed_content()
        ):
            raise BankError(
                f"version {manifest.version} of another origin is in {folder.name} already: import into a new folder"
            )
        for file in _files(manifest):
            (staging / file).replace(folder / file)
        serve_manifest(folder, manifest)
    return ModelBank.open(folder)
