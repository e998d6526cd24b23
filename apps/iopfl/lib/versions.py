"""Every label that was ever submitted, kept: who drew it, when, and what became of it.

A folder an image: the files of its versions, and `log.jsonl`, to which one line is added for everything
that happens and from which nothing is ever taken. A version's file and its line are on the disk before
a submission is answered, so that a crash loses no accepted label; a line that a crash cut off counts as not
written. Which version is an image's final label is decided elsewhere (`final_labels`) and noted here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from iopfl.base.errors import LabelVersionError
from iopfl.base.files import replacing, sync_folder
from iopfl.core.sites import find_suffix

logger = logging.getLogger(__name__)

LOG = "log.jsonl"

SUBMITTED, FOLDER, FROM_PACS, CONSENSUS = "submitted", "folder", "pacs", "consensus"
"""Where a version comes from: a client; a file put into the labels' folder by hand; a SEG found in the PACS; all the
annotators' versions together."""

UNDONE, DELETED, GONE = "undone", "deleted", "gone from the PACS"
"""Why a version does not count any more."""


@dataclass(frozen=True, kw_only=True)
class LabelVersion:
    """One label of an image, as it was when it came.

    Attributes:
        number: from 1, in the order in which they came.
        annotator: whose it is; "" = nobody said.
        when: UTC, ISO 8601; later than that of the versions before, except for what a PACS dates itself.
        kind: of `SUBMITTED`, `FOLDER`, `FROM_PACS`, `CONSENSUS`.
        file: its name in the image's folder; "" = still in the PACS alone.
        sha256: of the file, hexadecimal; "" without one.
        tasks: names of the tasks that it is a label for; empty = not known.
        origin: what it started from, e.g. task, model, bank.
        info: what the client said with it.
        sources: of a consensus: the versions it was made of.
        sop_instance_uid: of the SEG that holds it; "" = there is none.
        is_stored: whether that SEG is in the PACS.
    """

    number: int
    annotator: str
    when: str
    kind: str = SUBMITTED
    file: str = ""
    sha256: str = ""
    tasks: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[int, ...] = ()
    sop_instance_uid: str = ""
    is_stored: bool = False


@dataclass(frozen=True)
class History:
    """What the log of one image says.

    Attributes:
        versions: all of them, in the order in which they came.
        withdrawn: version number -> why it does not count any more.
        chosen: number of the version that a reviewer chose; None = the rule decides.
        published: number of the version that was last made the final label; 0 = none was to be; None = never.
        stamp: modification time (ns) and size of the file it was made into.
    """

    versions: tuple[LabelVersion, ...] = ()
    withdrawn: Mapping[int, str] = field(default_factory=dict)
    chosen: int | None = None
    published: int | None = None
    stamp: tuple[int, int] = (0, 0)

    def find(self, number: int) -> LabelVersion:
        """A version by its number.

        Raises:
            LabelVersionError: there is none.
        """
        if not 1 <= number <= len(self.versions):
            raise LabelVersionError(f"no version {number}: this image has {len(self.versions)} version(s), from 1")
        return self.versions[number - 1]

    def of(self, annotator: str) -> list[LabelVersion]:
        """An annotator's versions that count, oldest first."""
        return sorted((version for version in self.counting if version.annotator == annotator), key=_age)

    @property
    def current(self) -> dict[str, LabelVersion]:
        """Annotator -> newest version that counts; the annotators in the order of these, the newest first."""
        newest = {version.annotator: version for version in sorted(self.counting, key=_age)}
        return dict(sorted(newest.items(), key=lambda item: _age(item[1]), reverse=True))

    @property
    def counting(self) -> list[LabelVersion]:
        """The annotators' versions that were not withdrawn."""
        return [v for v in self.versions if v.kind != CONSENSUS and v.number not in self.withdrawn]


class VersionStore:
    """The versions of a datastore's labels.

    What changes a history is called by whoever holds it (`hold`): one thread of one process at a time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[tuple[int, int], History, str]] = {}
        self._held = threading.local()

    def images(self) -> list[str]:
        """Images with a history that can be read."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted(entry.name for entry in found if (entry / LOG).is_file() and not self.problem(entry.name))

    @contextlib.contextmanager
    def hold(self, image: str) -> Iterator[None]:
        """Keep everybody else from changing an image's history; within it, holding once more is free."""
        held = self._held.__dict__.setdefault("images", set())
        if image in held:
            yield
            return
        folder = self._folder / image
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            held.add(image)
            try:
                yield
            finally:
                held.remove(image)

    def history(self, image: str) -> History:
        """What is known of an image's labels.

        Raises:
            LabelVersionError: a newer iopfl wrote the log; it stays as it is.
        """
        history, problem = self._look_up(image)
        if problem:
            raise LabelVersionError(problem)
        return history

    def problem(self, image: str) -> str:
        """Why an image's history cannot be read; "" = it can be, or there is none."""
        return self._look_up(image)[1]

    def _look_up(self, image: str) -> tuple[History, str]:
        """What the log says, or why it cannot be read; it is read again once it has changed."""
        path = self._folder / image / LOG
        try:
            status = path.stat()
        except FileNotFoundError:
            return History(), ""
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._read.get(image)
        if known is None or known[0] != stamp:
            history, problem = History(), ""
            try:
                history = _replay(path)
            except LabelVersionError as error:
                problem = f"the labels of {image} cannot be read, nor others taken for it: {error}"
                logger.warning("%s", problem)
            known = (stamp, history, problem)
            self._read[image] = known
        return known[1:]

    def file(self, image: str, version: LabelVersion) -> Path:
        """Where a version's file lies.

        Raises:
            LabelVersionError: it has none here.
        """
        path = self._folder / image / version.file
        if not version.file or not path.is_file():
            raise LabelVersionError(f"version {version.number} has no file here: ask again when the PACS answers")
        return path

    def segmentation_file(self, image: str, number: int) -> Path:
        """Where a version's SEG lies until the PACS has it."""
        return self._folder / image / f"{number}.dcm"

    def add(
        self,
        image: str,
        file: Path | None,
        *,
        annotator: str,
        kind: str = SUBMITTED,
        when: datetime | None = None,
        **about: Any,
    ) -> LabelVersion:
        """Keep a label; the same again from the same annotator is the version there is.

        Args:
            image: its image.
            file: the label; it is copied. None for what only the PACS has yet.
            annotator: whose it is.
            kind: where it comes from.
            when: it was drawn; None = now.
            about: other attributes of `LabelVersion`.
        """
        history = self.history(image)
        digest = _digest(file) if file else ""
        same = history.of(annotator)[-1:] if kind in (SUBMITTED, FOLDER) else []
        if digest and same and same[0].sha256 == digest:
            return same[0]
        number = len(history.versions) + 1
        version = LabelVersion(
            number=number,
            annotator=annotator,
            when=(when or self._now(history)).astimezone(UTC).isoformat(),
            kind=kind,
            file=f"{number}{find_suffix(file.name) or file.suffix}" if file else "",
            sha256=digest,
            **about,
        )
        if file:
            self._keep(image, version.file, file)
        kept = {key: value for key, value in vars(version).items() if value or key in ("number", "annotator")}
        self.note(image, "version", **kept)
        logger.info("label of %s: version %d (%s)", image, number, kind)
        return version

    def attach(self, image: str, number: int, file: Path, *, tasks: Iterable[str]) -> LabelVersion:
        """Keep the file of a version that was in the PACS alone, and what it is a label for."""
        name = f"{number}{find_suffix(file.name) or file.suffix}"
        self._keep(image, name, file)
        self.note(image, "file", number=number, file=name, sha256=_digest(file), tasks=list(tasks))
        return self.history(image).find(number)

    def withdraw(self, image: str, versions: Iterable[LabelVersion], *, why: str, by: str = "") -> None:
        """Let versions not count any more; nothing of them is removed."""
        numbers = [version.number for version in versions]
        if numbers:
            self.note(image, "withdrawn", numbers=numbers, why=why, by=by)

    def note(self, image: str, what: str, **values: Any) -> None:
        """Add a line to an image's log; it is on the disk when this returns."""
        path = self._folder / image / LOG
        line = json.dumps({"what": what, "at": datetime.now(UTC).isoformat(), **values}, default=str).encode() + b"\n"
        is_new = not path.exists()
        with path.open("a+b", buffering=0) as log:
            size = log.tell()
            if size:
                log.seek(size - 1)
                line = line if log.read(1) == b"\n" else b"\n" + line  # a crash cut the line before off
            try:
                if log.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path.name)
                os.fsync(log.fileno())
            except OSError:  # a full disk: all of a line, or nothing
                log.truncate(size)
                raise
        if is_new:
            sync_folder(path.parent)

    def _keep(self, image: str, name: str, file: Path) -> None:
        target = self._folder / image / name
        with replacing(target) as temporary:
            shutil.copyfile(file, temporary)
        sync_folder(target.parent)

    def _now(self, history: History) -> datetime:
        """Now, and after everything that was drawn before: clocks are set back at times."""
        last = max((datetime.fromisoformat(v.when) for v in history.versions), default=datetime.min.replace(tzinfo=UTC))
        return max(datetime.now(UTC), last + timedelta(microseconds=1))


def _age(version: LabelVersion) -> tuple[datetime, int]:
    return datetime.fromisoformat(version.when), version.number


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _replay(path: Path) -> History:
    """Read a log from its first line to its last.

    Raises:
        LabelVersionError: there is something in it that this version of iopfl does not know.
    """
    history = History()
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off by a crash, before anybody was told of it
        try:
            history = _apply(history, event)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise LabelVersionError(f"line {number} of the log was written by a newer iopfl: update iopfl") from error
    return history


def _with_tuples(version: LabelVersion) -> LabelVersion:
    """A version as it was before JSON, which has lists alone."""
    return replace(version, sources=tuple(version.sources), tasks=tuple(version.tasks))


def _apply(history: History, event: dict[str, Any]) -> History:
    what = event.pop("what")
    event.pop("at", None)
    match what:
        case "version":
            version = _with_tuples(LabelVersion(**event))
            return replace(history, versions=(*history.versions, version))
        case "file" | "segmentation" | "stored":
            number = event.pop("number")
            changes = {**event, "is_stored": True} if what == "stored" else event
            versions = list(history.versions)
            versions[number - 1] = _with_tuples(replace(versions[number - 1], **changes))
            return replace(history, versions=tuple(versions))
        case "withdrawn":
            history = replace(history, withdrawn={**history.withdrawn, **dict.fromkeys(event["numbers"], event["why"])})
            is_left = history.chosen not in history.withdrawn and history.counting
            return history if is_left else replace(history, chosen=None)
        case "restored":
            kept = {number: why for number, why in history.withdrawn.items() if number not in event["numbers"]}
            return replace(history, withdrawn=kept)
        case "chosen":
            return replace(history, chosen=event["number"])
        case "published":
            return replace(history, published=event["number"], stamp=tuple(event["stamp"]))
    raise ValueError(f"no event {what!r}")
