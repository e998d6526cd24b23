"""What happened to the labels of an image, line by line, and what that comes to.

`log.jsonl` gets one line for everything that happens, and nothing is ever taken from it. A line that a crash cut off
counts as not written, nor does any other that is no JSON: what a lost line was about is found again from the files
(`versions`), and a number that a line names is never given to another label.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from iopfl.base.errors import LabelVersionError
from iopfl.base.files import sync_folder

LOG = "log.jsonl"

SUBMITTED, FOLDER, FROM_PACS, CONSENSUS, RECOVERED = "submitted", "folder", "pacs", "consensus", "recovered"
"""Where a version comes from: a client; a file put into the labels' folder by hand; a SEG found in the PACS; all the
annotators' versions together; a file whose line in the log is lost, so that nobody knows who drew it."""

UNDONE, DELETED, GONE, DAMAGED = "undone", "deleted", "gone from the PACS", "its file is damaged or gone"
"""Why a version does not count any more."""


@dataclass(frozen=True, kw_only=True)
class LabelVersion:
    """One label of an image, as it was when it came.

    Attributes:
        number: from 1, in the order in which they came.
        annotator: whose it is; "" = nobody said, or it is not known any more.
        when: UTC, ISO 8601; later than that of the versions before, except for what a PACS dates itself.
        kind: of `SUBMITTED`, `FOLDER`, `FROM_PACS`, `CONSENSUS`, `RECOVERED`.
        file: its name in the image's folder; "" = still in the PACS alone.
        sha256: the SHA-256 of the file, hexadecimal; "" without one.
        tasks: names of the tasks that it is a label for; empty = not known.
        origin: what it started from, e.g. task, model, bank.
        info: what the client said with it.
        sources: the versions that a consensus was made of.
        sop_instance_uid: the SOP Instance UID of the SEG that holds it; "" = there is none.
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

    @property
    def can_be_had(self) -> bool:
        """Whether its file is here or in the PACS, as far as the log knows."""
        return bool(self.file or self.sop_instance_uid)


@dataclass(frozen=True)
class History:
    """What the log of one image says.

    Attributes:
        versions: all of them, by number; of a lost line there may be none.
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

    def get(self, number: int) -> LabelVersion | None:
        """A version by its number, or None."""
        return next((version for version in self.versions if version.number == number), None)

    def find(self, number: int) -> LabelVersion:
        """A version by its number.

        Raises:
            LabelVersionError: there is none.
        """
        version = self.get(number)
        if version is None:
            raise LabelVersionError(f"no version {number}: this image has {len(self.versions)} version(s), from 1")
        return version

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
        counting = (v for v in self.versions if v.kind != CONSENSUS and v.number not in self.withdrawn)
        return [version for version in counting if version.can_be_had]


def write_line(path: Path, what: str, **values: Any) -> None:
    """Add a line to a log: all of it, or nothing; it is on the disk when this returns.

    Raises:
        OSError: the disk is full, or not to be written to; the log is as it was.
    """
    line = json.dumps({"what": what, "at": datetime.now(UTC).isoformat(), **values}, default=str).encode() + b"\n"
    if not path.exists():
        path.touch()
        sync_folder(path.parent)  # first: once the line is written, nothing may say that it is not
    with path.open("a+b", buffering=0) as log:
        size = log.tell()
        if size:
            log.seek(size - 1)
            line = line if log.read(1) == b"\n" else b"\n" + line  # a crash cut the line before off
        try:
            if log.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path.name)
            os.fsync(log.fileno())
        except OSError:
            log.truncate(size)
            raise


def read_log(path: Path) -> History:
    """Read a log from its first line to its last.

    Raises:
        LabelVersionError: there is something in it that this version of iopfl does not know.
    """
    history = History()
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off by a crash, before anybody was told of it, or damaged
        try:
            history = _apply(history, event)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise LabelVersionError(f"line {number} of the log was written by a newer iopfl: update iopfl") from error
    return history


def _age(version: LabelVersion) -> tuple[datetime, int]:
    return datetime.fromisoformat(version.when), version.number


def _with(history: History, version: LabelVersion) -> History:
    """A history with a version, in place of the one of that number; from JSON, which has lists alone."""
    version = replace(version, sources=tuple(version.sources), tasks=tuple(version.tasks))
    others = [known for known in history.versions if known.number != version.number]
    return replace(history, versions=tuple(sorted([*others, version], key=lambda known: known.number)))


def _with_lost(history: History, event: Mapping[str, Any]) -> History:
    """A history with the versions that an event names and no line before it: that line is lost."""
    named = [event["number"]] if "number" in event else event.get("numbers", [])
    for number in named:
        if number and history.get(number) is None:
            history = _with(history, LabelVersion(number=number, annotator="", when=event["at"], kind=RECOVERED))
    return history


def _apply(history: History, event: dict[str, Any]) -> History:
    what = event["what"]
    about = {key: value for key, value in event.items() if key not in ("what", "at")}
    if what == "version":
        version = LabelVersion(**about)
        lost = history.get(version.number)
        if lost is not None and lost.kind == RECOVERED:  # found again, or claimed by who drew it
            known = {key: getattr(lost, key) for key in ("sop_instance_uid", "is_stored") if getattr(lost, key)}
            version = replace(version, **known)
        return _with(history, version)
    history = _with_lost(history, event)
    match what:
        case "file" | "segmentation" | "stored":
            version = history.find(about.pop("number"))
            return _with(history, replace(version, **({**about, "is_stored": True} if what == "stored" else about)))
        case "withdrawn":
            history = replace(history, withdrawn={**history.withdrawn, **dict.fromkeys(about["numbers"], about["why"])})
            is_left = history.chosen not in history.withdrawn and history.counting
            return history if is_left else replace(history, chosen=None)
        case "restored":
            kept = {number: why for number, why in history.withdrawn.items() if number not in about["numbers"]}
            return replace(history, withdrawn=kept)
        case "chosen":
            return replace(history, chosen=about["number"])
        case "published":
            return replace(history, published=about["number"], stamp=tuple(about["stamp"]))
    raise ValueError(f"no event {what!r}")
