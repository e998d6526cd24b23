"""The inbox: a folder for each received series, each instance a file, as it was sent.

An instance that was accepted is a whole file under its final name: it is written
under another one and renamed, so a killed process leaves none that is half, and
what was accepted outlives it. (The kernel writes files to the disk some seconds
later. Against the loss of power there is `durable`, at the price of a write to the
disk an instance.) The folder's listing is the truth of what there is; the queue
says what was done with it. UIDs become file names only when they are UIDs. What comes
counts from its first byte, whoever sends it: all together stays below `max_bytes`
and leaves `min_free` bytes of the disk to everything else.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from iopfl.base.errors import SeriesError
from iopfl.base.files import sync_folder
from iopfl.base.uids import is_uid
from iopfl.dimse.queue import FINISHED, Job, Queue, State
from iopfl.dimse.room import InboxFullError, Room
from iopfl.dimse.spool import Incoming

logger = logging.getLogger(__name__)

OPEN_ASSOCIATION_SECONDS = 60.0
"""Without a new instance, after which a series is complete though the association that brought it is still open."""
MAX_SERIES = 100_000
"""At once: each has a file in the queue, and is held in memory."""

_SUFFIX = ".dcm"


class Outcome(StrEnum):
    """What an instance was to the inbox."""

    NEW = "new"
    SAME = "same"
    REPLACED = "replaced"


@dataclass(frozen=True)
class Instance:
    """An instance as it came, and from whom.

    Attributes:
        series_instance_uid: the Series Instance UID.
        study_instance_uid: the Study Instance UID.
        sop_instance_uid: its own.
        calling: AE title that sent it.
        called: AE title that it was sent to.
        expected: Number of Series Related Instances, where the instance says so; 0 = it does not.
    """

    series_instance_uid: str
    study_instance_uid: str
    sop_instance_uid: str
    calling: str
    called: str
    expected: int = 0


@dataclass
class _Arrivals:
    """What is known of a series that is still coming."""

    first: float
    last: float = 0.0
    count: int = 0
    expected: int = 0
    associations: set[object] = field(default_factory=set)


class Inbox:
    """The received series of a folder.

    Args:
        folder: the inbox's folder.
        queue: where a job is made for each series.
        max_bytes: the largest size, in bytes, of all series together, with what is coming; None = as the disk has it.
        min_free: bytes of the disk that are left to others.
        durable: have each instance on the disk before it is accepted.
    """

    def __init__(
        self, folder: Path, queue: Queue, *, max_bytes: int | None = None, min_free: int = 0, durable: bool = False
    ) -> None:
        self._series, self._incoming = folder / "series", folder / "incoming"
        self.queue, self.durable = queue, durable
        self._lock = threading.RLock()
        shutil.rmtree(self._incoming, ignore_errors=True)  # never accepted
        for place in (self._series, self._incoming):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._arrivals: dict[str, _Arrivals] = {}
        self.room = Room(self._incoming, max_bytes=max_bytes, min_free=min_free)
        self.room.stored = sum(path.stat().st_size for path in self._series.glob(f"*/*{_SUFFIX}"))
        self._recover()

    @property
    def size(self) -> int:
        """Bytes of the instances that lie here."""
        return self.room.stored

    def receive(self, content: Iterable[bytes] = ()) -> Incoming:
        """Begin a file of an instance that is coming, with its first parts.

        Raises:
            InboxFullError: there is no room for more, now or at one of the file's further parts.
            OSError: the disk does not take it.
        """
        incoming = Incoming(self._incoming, self.room.reserve, self.room.release)
        try:
            for part in content:
                incoming.write(part)
        except BaseException:
            incoming.discard()
            raise
        return incoming

    def store(self, instance: Instance, content: Iterable[bytes] | Incoming, association: object = None) -> Outcome:
        """Accept an instance: when this returns, it stays.

        Of instances with the same UID the later one stays; one with the same content changes nothing.

        Args:
            instance: what it is.
            content: the parts of the file, or the file itself, which has no other place afterwards.
            association: that brought it.

        Raises:
            SeriesError: a UID that is none, or its series is of another study.
            InboxFullError: there would be more than `max_bytes`, or less free than `min_free`.
            OSError: the disk does not take it.
        """
        uid = check_uid(instance.series_instance_uid, "Series Instance UID")
        name = check_uid(instance.sop_instance_uid, "SOP Instance UID") + _SUFFIX
        check_uid(instance.study_instance_uid, "Study Instance UID")
        incoming = content if isinstance(content, Incoming) else self.receive((b"".join(content),))
        target = self._series / uid / name
        try:
            if self.durable:
                incoming.flush_to_disk()
            with self._lock:
                job = self._open_job(instance)
                outcome, before = _compare(target, incoming.path)
                if outcome is not Outcome.SAME:
                    target.parent.mkdir(exist_ok=True, mode=0o700)
                    incoming.path.replace(target)
                    self.room.stored += incoming.size - before
                    if self.durable:
                        sync_folder(target.parent)
                self._note(instance, outcome, job, association)
                return outcome
        finally:
            incoming.discard()

    def ended(self, association: object) -> None:
        """Note that an association brings no more."""
        with self._lock:
            for arrivals in self._arrivals.values():
                arrivals.associations.discard(association)

    def complete(self, quiet_seconds: float) -> list[str]:
        """Series of which all there is has come: nothing new for a while, or as many as the series says it has."""
        now = time.monotonic()
        with self._lock:
            return [
                uid
                for uid, arrivals in self._arrivals.items()
                if now - arrivals.last >= (OPEN_ASSOCIATION_SECONDS if arrivals.associations else quiet_seconds)
                or 0 < arrivals.expected <= arrivals.count
            ]

    def begin(self, series_instance_uid: str) -> Job | None:
        """Take a complete series up for segmentation; None where there is nothing of it."""
        with self._lock:
            job = self.queue.get(series_instance_uid)
            arrivals = self._arrivals.get(series_instance_uid)
            instances, content = self.listing(series_instance_uid)
            if job is None or not instances:
                if job is not None and job.instances:
                    logger.error("series %s is gone from the inbox: send it again", series_instance_uid)
                self.queue.remove(series_instance_uid)
                self._arrivals.pop(series_instance_uid, None)
                return None
            first, last = (_epoch(arrivals.first), _epoch(arrivals.last)) if arrivals else (0.0, 0.0)
            times = {"first": first, "last": last, "complete": time.time()} if arrivals else dict(job.times)
            most = max(instances, job.instances)
            job = self.queue.put(replace(job, state=State.SEGMENTING, content=content, instances=most, times=times))
            self._arrivals.pop(series_instance_uid, None)  # not before: a full disk must not have it forgotten
            return job

    def is_unchanged(self, job: Job) -> bool:
        """Whether a series is still what the job was begun with."""
        return self.listing(job.series_instance_uid)[1] == job.content

    def expect(self, series_instance_uid: str) -> None:
        """Wait for more of a series, as if an instance had come just now."""
        with self._lock:
            now = time.monotonic()
            count = self.listing(series_instance_uid)[0]
            self._arrivals.setdefault(series_instance_uid, _Arrivals(now, count=count)).last = now

    def folder(self, series_instance_uid: str) -> Path:
        """Where a series lies, or would."""
        return self._series / check_uid(series_instance_uid, "Series Instance UID")

    def files(self, series_instance_uid: str) -> list[Path]:
        """The files of a series, by name; empty where there is none."""
        return sorted(self.folder(series_instance_uid).glob(f"*{_SUFFIX}"))

    def find(self, sop_instance_uid: str) -> Path | None:
        """The file of an instance, wherever it lies."""
        if not is_uid(sop_instance_uid):
            return None
        return next(self._series.glob(f"*/{sop_instance_uid}{_SUFFIX}"), None)

    def listing(self, series_instance_uid: str) -> tuple[int, str]:
        """How many files a series has, and a digest that changes when one does."""
        digest, files = hashlib.sha256(), self.files(series_instance_uid)
        for path in files:
            status = path.stat()
            digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return len(files), digest.hexdigest() if files else ""

    def remove(self, job: Job, *, finished: bool = True) -> bool:
        """Delete a series and its job, unless it has changed since.

        Args:
            job: as it was read.
            finished: only where nothing is owed to anybody any more.
        """
        with self._lock:
            if self.queue.get(job.series_instance_uid) is not job or (finished and job.state not in FINISHED):
                return False
            folder, gone = self.folder(job.series_instance_uid), self._incoming / job.series_instance_uid
            self.room.stored -= sum(path.stat().st_size for path in folder.glob(f"*{_SUFFIX}"))
            with contextlib.suppress(FileNotFoundError):
                folder.rename(gone)  # first: of a deletion that is cut off, no half is taken for the series
            self.queue.remove(job.series_instance_uid)
            self._arrivals.pop(job.series_instance_uid, None)
            shutil.rmtree(gone, ignore_errors=True)
            return True

    def _open_job(self, instance: Instance) -> Job:
        """The job of the instance's series; made before its first file, or nobody would know who sent it."""
        job = self.queue.get(instance.series_instance_uid)
        if job is None:
            if len(self.queue) >= MAX_SERIES:
                raise InboxFullError(f"the inbox holds {MAX_SERIES} series, and that is the most")
            self.expect(instance.series_instance_uid)  # even if its first file does not come to lie there
            return self.queue.put(
                Job(
                    series_instance_uid=instance.series_instance_uid,
                    study_instance_uid=instance.study_instance_uid,
                    calling_ae_title=instance.calling,
                    called_ae_title=instance.called,
                )
            )
        if job.study_instance_uid != instance.study_instance_uid:
            raise SeriesError(f"series {job.series_instance_uid} belongs to another study already")
        return job

    def _note(self, instance: Instance, outcome: Outcome, job: Job, association: object) -> None:
        """Take an instance down among the arrivals of its series."""
        uid, now = instance.series_instance_uid, time.monotonic()
        if outcome is Outcome.REPLACED:
            name = instance.sop_instance_uid
            logger.warning("series %s: instance %s came again with other content, which counts now", uid, name)
        if uid not in self._arrivals:
            if outcome is Outcome.SAME:
                return  # of a series that is complete: nothing new
            self.expect(uid)
            self._reopen(job)
        elif outcome is Outcome.NEW:
            self._arrivals[uid].count += 1
        arrivals = self._arrivals[uid]
        arrivals.last = now
        arrivals.expected = instance.expected or arrivals.expected
        if association is not None:
            arrivals.associations.add(association)

    def _reopen(self, job: Job) -> None:
        """Have a series that was complete segmented again; one that is being segmented is looked at afterwards."""
        if job.state not in (State.RECEIVED, State.SEGMENTING):
            logger.info("series %s gets more instances: it will be segmented again", job.series_instance_uid)
            self.queue.put(replace(job, state=State.RECEIVED, reason="", attempts=0, due=0.0, waiting=()))

    def _recover(self) -> None:
        """Go on where a process ended: wait for series that were coming, and for those with files that no job saw."""
        for job in self.queue.jobs():
            uid, left = job.series_instance_uid, self.listing(job.series_instance_uid)[0]
            if left < job.instances:
                logger.error("series %s: %d of %d instances are left in the inbox", uid, left, job.instances)
            if job.state in (State.RECEIVED, State.SEGMENTING):
                self.expect(uid)
            elif left >= job.instances and job.content and not self.is_unchanged(job):
                self._reopen(job)
                self.expect(uid)
        for folder in self._series.iterdir():
            if self.queue.get(folder.name) is None:
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    continue
                text = "series %s in the inbox has no job that can be read: send it again, or delete its folder"
                logger.error(text, folder.name)


def check_uid(value: str, what: str) -> str:
    """A UID that may become a file name (PS3.5, 9.1).

    Raises:
        SeriesError: it is none.
    """
    if not is_uid(value):
        raise SeriesError(f"expected a UID as {what}, digits and dots, given {len(value)} other characters")
    return value


def _compare(target: Path, came: Path) -> tuple[Outcome, int]:
    """What a file is to the one that lies there, and how many bytes that has."""
    try:
        before = target.stat().st_size
    except FileNotFoundError:
        return Outcome.NEW, 0
    is_same = before == came.stat().st_size and filecmp.cmp(target, came, shallow=False)
    return (Outcome.SAME if is_same else Outcome.REPLACED), before


def _epoch(monotonic: float) -> float:
    return time.time() - (time.monotonic() - monotonic)
