"""Who did what, and when: an append-only log in which an altered line shows.

One JSON object a line, in the order of what happened; `previous` is the SHA-256 of the line before,
so that a line that was changed, inserted or taken out breaks the chain there. The newest line has
nothing after it: its hash, the head, is what `verify` gives, to be noted somewhere else.

No patient identifiers: what names an image, a label or a session is kept as it is only if it is a
UID (DICOM PS3.5, 9) or another number of a machine's making. Anything else may be somebody's name,
and is recorded as its keyed hash. `pseudonym` makes the same hash again, for whoever has the key.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from iopfl.base.errors import AuditError, LostKeyError
from iopfl.base.files import sync_folder
from iopfl.base.locks import hold_one, lock
from iopfl.base.private_files import fingerprint, make_private, read_or_make_key, replace_key

logger = logging.getLogger(__name__)

FOLDER, LOG, KEY = "audit", "audit.jsonl", "pseudonyms.key"

NAMES_A_PATIENT = frozenset({"image", "label", "session", "study", "series", "instance"})
"""Keys of `about` whose values are not recorded unless they are numbers of a machine's making."""

_MACHINE_MADE = re.compile(r"[0-2](\.(0|[1-9]\d*)){3,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|id-[0-9a-f]{24}")
_MAX_TEXT = 200
_TAIL = 2**18
"""Bytes; no line is that long."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line.

    Attributes:
        time: UTC, ISO 8601.
        who: a user's name; "" = nobody signed in, authentication is off.
        what: e.g. `PUT /datastore/label`.
        about: e.g. image, tag, status.
        digest: SHA-256 of the content that came, hexadecimal; "" = none.
        previous: SHA-256 of the line before, hexadecimal; "" = this is the first.
    """

    time: str
    who: str
    what: str
    about: Mapping[str, str]
    digest: str
    previous: str


@dataclass(frozen=True)
class Chain:
    """What a whole log amounts to.

    Attributes:
        lines: how many.
        torn: how many of them a crash cut off while they were written.
        size: bytes.
        head: SHA-256 of the newest line; "" = there is none.
    """

    lines: int
    torn: int
    size: int
    head: str


class AuditLog:
    """The log in a folder. Several processes and threads may append at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def path(self) -> Path:
        """The log itself."""
        return self._folder / LOG

    def append(self, who: str, what: str, about: Mapping[str, str], digest: str = "") -> None:
        """Record something that happened; it is on the disk when this returns.

        Raises:
            OSError: it cannot be written, and the log is as it was.
        """
        make_private(self._folder)
        safe = {_cut(key): _cut(self._safe(key, value)) for key, value in about.items()}
        is_new = not self.path.is_file()
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            lock(descriptor)
            size = os.fstat(descriptor).st_size
            tail = os.pread(descriptor, _TAIL, max(0, size - _TAIL))
            is_torn = not tail.endswith(b"\n") and size > 0
            before = tail.removesuffix(b"\n").rsplit(b"\n", 1)[-1]
            entry = Entry(
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                who=_cut(who),
                what=_cut(what),
                about=safe,
                digest=digest,
                previous=_hash(before) if size else "",
            )
            line = json.dumps(asdict(entry), separators=(",", ":")).encode() + b"\n"
            _write_whole(descriptor, b"\n" + line if is_torn else line, size)
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(self._folder)

    def pseudonym(self, value: str) -> str:
        """What stands in the log for a name: the same for the same one, and no way back without the key."""
        try:
            key = read_or_make_key(self._folder / KEY)
        except LostKeyError as error:
            key = self._replace_key(str(error))
        return f"id-{hmac.digest(key, value.encode(errors='surrogatepass'), 'sha256').hex()[:24]}"

    def check_key(self) -> None:
        """Notice that the key of the pseudonyms is lost: the log goes on with a new one, and says so itself."""
        key = self._folder / KEY
        try:
            if self.path.is_file() and not key.exists() and b'"id-' in self._tail():
                raise LostKeyError(f"{key} is gone")  # from before there were fingerprints
            if key.parent.is_dir():
                read_or_make_key(key)
        except LostKeyError as error:
            self._replace_key(str(error))

    def _replace_key(self, problem: str) -> bytes:
        with hold_one([self._folder / f".{KEY}.lock"]):
            if (self._folder / KEY).exists():
                with contextlib.suppress(LostKeyError):
                    return read_or_make_key(self._folder / KEY)  # another process was first
            key = replace_key(self._folder / KEY)
        logger.warning(
            "%s. The audit log goes on with a new key: names in its lines until now have other hashes than from now on",
            problem,
        )
        self.append("", "key of pseudonyms replaced", {"fingerprint": fingerprint(key)})
        return key

    def entries(self) -> Iterator[Entry]:
        """All lines, oldest first; what a crash cut off is left out."""
        for line in self._lines():
            entry = _parse(line)
            if entry is not None:
                yield entry

    def verify(self, *, noted: str = "") -> Chain:
        """Check the chain.

        Args:
            noted: head of an earlier day, which must still be in it.

        Raises:
            AuditError: a line was changed, inserted or removed, or the noted one is gone.
        """
        count, torn, head, found = 0, 0, "", not noted
        for line in self._lines():
            entry = _parse(line)
            torn += entry is None
            if entry is not None and entry.previous != head:
                raise AuditError(
                    f"{self.path}: expected line {count + 1} to carry the hash of the line before it, and it does not: "
                    "a line was changed, inserted or removed just here; compare with a backup"
                )
            count, head = count + 1, _hash(line)
            found = found or head == noted
        if not found:
            raise AuditError(
                f"{self.path}: expected a line whose hash is {noted}, found none in {count} lines: "
                "the log was cut or written anew; compare with a backup"
            )
        return Chain(count, torn, self.path.stat().st_size if count else 0, head)

    def _lines(self) -> Iterator[bytes]:
        if self.path.is_file():
            with self.path.open("rb") as file:
                for line in file:
                    yield line.removesuffix(b"\n")

    def _tail(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - _TAIL))
            return file.read()

    def _safe(self, key: str, value: str) -> str:
        if key not in NAMES_A_PATIENT or not value or _MACHINE_MADE.fullmatch(value):
            return value
        return self.pseudonym(value)


def _parse(line: bytes) -> Entry | None:
    try:
        return Entry(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _write_whole(descriptor: int, content: bytes, size: int) -> None:
    """Append all of it, or, on a full disk, nothing."""
    try:
        written = os.write(descriptor, content)
        if written < len(content):
            os.write(descriptor, content[written:])
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"
