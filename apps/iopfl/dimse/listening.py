"""The service: receives series, notices complete ones, has them segmented, sends the result, and keeps order.

One thread receives for each association, one segments, one sends, so that a PACS
that does not answer holds up nothing but itself. What each does next is in the
queue on disk; a kill at any moment costs at most a segmentation done again.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.misc import is_dicom

from iopfl.base.errors import CancelledError, ConfigError, IOPFLError, NotTakenError, PACSError, SeriesError
from iopfl.base.locks import try_hold
from iopfl.dicomio.facts import find_facts
from iopfl.dicomio.files import reading
from iopfl.dicomio.result_kinds import DISAGREEMENT
from iopfl.dicomio.results import build_results
from iopfl.dicomio.segmentation import Origin, Segment
from iopfl.dicomio.series import read_series, write_nifti
from iopfl.dimse.commitment import Commitment
from iopfl.dimse.inbox import Inbox
from iopfl.dimse.outbox import Outbox, send
from iopfl.dimse.progress import WORK, ProgressFile, Tell
from iopfl.dimse.query import QueryRetrieve
from iopfl.dimse.queue import Job, Queue, State
from iopfl.dimse.received import count_missing, read_header
from iopfl.dimse.room import default_min_free
from iopfl.dimse.rules import Facts, Rule, Rules
from iopfl.dimse.scp import Record, SCPSettings, StorageSCP, record_nothing
from iopfl.dimse.upkeep import lock_file, make_room, take_wishes

logger = logging.getLogger(__name__)

SEGMENT_ATTEMPTS = 5
SEND_ATTEMPTS = 30
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 3600.0
"""Seconds after a first failure, doubled after each further one, up to the longest: 30 attempts take 20 hours."""
_TICK = 0.1  # seconds between looks at the inbox
_TIDY_SECONDS = 5.0  # between looks for what may be deleted


@dataclass(frozen=True)
class Answered:
    """What a model made of an image.

    Attributes:
        mask: (X, Y, Z) label values on the image's grid.
        segments: all labels that it may hold.
        origin: what made it.
        seconds: how long the model took, from file to mask.
        quality: agreement of the bank's experts with the mask, 0 to 1; None where it was not computed.
        disagreement: (X, Y, Z) percent of the experts that give another label; None where nobody asked for it.
    """

    mask: np.ndarray
    segments: Sequence[Segment]
    origin: Origin
    seconds: float = 0.0
    quality: float | None = None
    disagreement: np.ndarray | None = None


Answer = Callable[[str, Path, Callable[[], bool], bool, Tell], Answered]
"""Segments an image file: a rule's answer, the file, what is asked now and then whether to end (CancelledError),
whether it is to say where the experts disagree, and what is told how far it is."""


@dataclass(frozen=True, kw_only=True)
class ListenSettings:
    """How to listen and what to keep.

    Attributes:
        folder: the folder that holds inbox, outbox and queue.
        scp: how associations are taken.
        quiet_seconds: without a new instance, after which a series is complete.
        keep_days: finished series stay so long.
        max_bytes: the largest size, in bytes, of received series; the oldest finished ones make room, and beyond it
            nothing is accepted; None = as many as fit.
        min_free_bytes: what stays free of the disk, likewise; None = a twentieth, at most 10 GB.
        durable: have each instance on the disk before it is accepted.
        commitment: whether to answer requests for storage commitment.
    """

    folder: Path
    scp: SCPSettings = field(default_factory=SCPSettings)
    quiet_seconds: float = 10.0
    keep_days: float = 7.0
    max_bytes: int | None = None
    min_free_bytes: int | None = None
    durable: bool = False
    commitment: bool = False

    def __post_init__(self) -> None:
        if self.quiet_seconds <= 0 or self.keep_days <= 0 or (self.max_bytes is not None and self.max_bytes <= 0):
            raise ConfigError("expected a positive quiet period, time and space to keep series, given one that is not")
        if self.min_free_bytes is not None and self.min_free_bytes < 0:
            raise ConfigError(f"expected bytes of the disk to keep free, from 0, given {self.min_free_bytes}")


class Listener:
    """The running service; use it as a context.

    Args:
        settings: how to listen.
        rules: which series is answered by what.
        answer: the models.
        record: records each series that is segmented, sent on or retrieved; what cannot be recorded is tried again.

    Raises:
        ConfigError: another listener has the folder, or the address is taken.
    """

    def __init__(self, settings: ListenSettings, rules: Rules, answer: Answer, record: Record = record_nothing) -> None:
        self.settings, self.rules, self._answer, self._record = settings, rules, answer, record
        self._stop = threading.Event()
        self._resources = ExitStack()
        settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._resources.enter_context(try_hold(lock_file(settings.folder))) is None:
            raise ConfigError(f"{settings.folder}: another iopfl dicom listen works here; give it another --state")
        try:
            self.queue = Queue(settings.folder / "queue")
            free = settings.min_free_bytes
            self.inbox = Inbox(
                settings.folder,
                self.queue,
                max_bytes=settings.max_bytes,
                min_free=default_min_free(settings.folder) if free is None else free,
                durable=settings.durable,
            )
            self.outbox = Outbox(settings.folder / "outbox")
            self._work, self._tidied = settings.folder / WORK, 0.0
            shutil.rmtree(self._work, ignore_errors=True)  # of a process that was killed
            self._work.mkdir(mode=0o700)
            services = [QueryRetrieve(self.inbox, rules.find_peer, record).service]
            if settings.commitment:
                ours, timeouts = settings.scp.ae_title, settings.scp.timeouts
                services.append(Commitment(self.inbox, rules.find_peer, ae_title=ours, timeouts=timeouts).service)
            self._scp = StorageSCP(settings.scp, self.inbox, services)
        except BaseException:
            self._resources.close()
            raise
        self._threads = [
            threading.Thread(target=self._repeat, args=(work,), name=name)
            for name, work in (("dicom-segment", self._segment_next), ("dicom-send", self._send_next))
        ]

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._scp.port

    def __enter__(self) -> Listener:
        self._scp.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Take no more instances, and end after what is being segmented or sent now."""
        self._stop.set()
        self._scp.stop()
        for thread in self._threads:
            thread.join()
        self._resources.close()

    def _repeat(self, work: Callable[[], bool]) -> None:
        """Work as long as there is some."""
        while not self._stop.is_set():
            try:
                found = work()
            except Exception as error:  # a full disk, most likely; the service shall outlive it
                logger.error("%s: %s: %s", threading.current_thread().name, type(error).__name__, _reason(error))
                found = False
                self._stop.wait(FIRST_PAUSE)
            if not found:
                self._stop.wait(_TICK)

    def _segment_next(self) -> bool:
        """Segment one series that is complete, if there is one."""
        take_wishes(self.inbox)
        now = time.time()
        if now - self._tidied > _TIDY_SECONDS:
            make_room(self.inbox, self.outbox, keep_days=self.settings.keep_days)
            self._tidied = now
        uids = self.inbox.complete(self.settings.quiet_seconds)
        uids += [job.series_instance_uid for job in self.queue.jobs(State.SEGMENTING) if job.due <= now]
        job = self.inbox.begin(uids[0]) if uids else None
        if job is None:
            return bool(uids)
        uid = job.series_instance_uid
        logger.info("series %s is complete with %d instances", uid, job.instances)
        try:
            self._segment(job)
        except CancelledError:  # the service ends: the job goes on when it is back
            logger.info("series %s is left for the next start", uid)
        except IOPFLError as error:
            logger.warning("series %s is not segmented: %s", uid, error)
            self.queue.change(job, state=State.REFUSED, reason=str(error), waiting=(), due=0.0)
        except Exception as error:  # out of memory, a full disk: may pass
            logger.error("series %s: %s: %s", uid, type(error).__name__, _reason(error))
            attempts = job.attempts + 1
            if attempts < SEGMENT_ATTEMPTS:
                due = time.time() + _pause(attempts)
                self.queue.change(job, attempts=attempts, due=due, reason=_reason(error))
            else:
                self.queue.change(job, state=State.FAILED, reason=f"not segmented: {_reason(error)}")
        return True

    def _segment(self, job: Job) -> None:
        """From files to a segmentation in the outbox."""
        uid = job.series_instance_uid
        files, times = self.inbox.files(uid), dict(job.times)
        if len(files) < job.instances:
            raise SeriesError(f"{len(files)} of the {job.instances} instances that came are left: send the rest again")
        if not all(is_dicom(path) for path in files):
            raise SeriesError("an instance was damaged in the inbox: send the series again")
        header = read_header(files)
        missing = count_missing(header, job.instances)
        rule = self._find_rule(job, header, job.instances)
        series = read_series(files)
        left_out = series.left_out + ((f"{missing} that did not come",) if missing else ())
        if left_out:
            logger.warning("series %s: left out: %s", uid, "; ".join(left_out))
            rule = self._find_rule(job, series.datasets[0], len(series.datasets))
        times["read"] = time.time()
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            image = Path(folder) / "image.nii"
            write_nifti(series, image)
            with ProgressFile(self._work, uid) as tell:
                answered = self._answer(rule.answer, image, self._stop.is_set, DISAGREEMENT in rule.results, tell)
        times["answered"] = time.time()
        times["model"] = times["answered"] - answered.seconds
        results = build_results(
            rule.results,
            answered.mask,
            series,
            answered.segments,
            answered.origin,
            quality=answered.quality,
            disagreement=answered.disagreement,
        )
        segmentation = self.outbox.add(results)
        times["segmented"] = time.time()
        if not self.inbox.is_unchanged(job):  # with what came meanwhile, and may be coming still, it is another one
            self.inbox.expect(uid)
            self.queue.change(job, state=State.RECEIVED)
            return
        about = {"series": uid, "instance": segmentation, "answer": rule.answer, "version": answered.origin.version}
        self._record(job.calling_ae_title, "dicom segment", about)
        changed = self.queue.change(
            job,
            state=State.SENDING,
            rule=rule.name,
            answer=rule.answer,
            segmentation=segmentation,
            left_out="; ".join(left_out),
            sends=self.outbox.digest(segmentation),
            waiting=rule.send_to,
            times=times,
            attempts=0,
            due=0.0,
            reason="",
        )
        if changed is not None:
            logger.info("series %s segmented by %s as %s", uid, rule.answer, segmentation)

    def _find_rule(self, job: Job, header: Dataset, instances: int) -> Rule:
        """The rule that answers a series of so many instances.

        Raises:
            SeriesError: there is none.
        """
        with reading("an instance's header"):
            about = vars(find_facts(header, instances=instances))
            facts = Facts(**about, calling=job.calling_ae_title, called=job.called_ae_title)
        rule, reasons = self.rules.find(facts)
        if rule is None:
            raise SeriesError(f"no rule matches: {'; '.join(reasons)}")
        return rule

    def _send_next(self) -> bool:
        """Send one segmentation to one destination, if one is due."""
        now = time.time()
        job = next((job for job in self.queue.jobs(State.SENDING) if job.due <= now), None)
        if job is None:
            return False
        if job.sends and self.outbox.digest(job.segmentation) != job.sends:
            uid, reason = job.series_instance_uid, "what was to be sent is damaged or gone: segmented again"
            logger.error("series %s: %s", uid, reason)
            self.queue.change(job, state=State.SEGMENTING, attempts=0, due=0.0, reason=reason)
            return True
        left, failures = list(job.waiting), []
        for name in job.waiting:
            destination = self.rules.destinations.get(name)
            try:
                if destination is None:
                    raise PACSError(f"there is no destination {name} in the rules any more")
                scp = self.settings.scp
                paths = self.outbox.paths(job.segmentation)
                again = job.attempts > 0
                send(paths, destination, ae_title=scp.ae_title, timeouts=scp.timeouts, again=again)
                about = {"series": job.series_instance_uid, "instance": job.segmentation, "to": str(destination)}
                self._record(job.calling_ae_title, "dicom send", about)
            except Exception as error:  # whatever it is, it shall hold up no other segmentation
                failures.append(error)
                logger.warning("segmentation %s, attempt %d: %s", job.segmentation, job.attempts + 1, _reason(error))
                continue
            left.remove(name)
            logger.info("segmentation %s sent to %s", job.segmentation, destination)
            changed = self.queue.change(job, waiting=tuple(left))
            if changed is None:
                return True  # the series got more instances meanwhile
            job = changed
        reason = "; ".join(map(_reason, failures))
        if not left:
            self.queue.change(job, state=State.DONE, reason="", times={**job.times, "sent": time.time()})
        elif job.attempts + 1 >= SEND_ATTEMPTS or all(isinstance(error, NotTakenError) for error in failures):
            self.queue.change(job, state=State.FAILED, reason=reason)
            logger.error("segmentation %s is given up; iopfl dicom queue retry sends it again", job.segmentation)
        else:
            attempts = job.attempts + 1
            due = time.time() + _pause(attempts)
            self.queue.change(job, attempts=attempts, due=due, reason=reason)
        return True


def _pause(attempts: int) -> float:
    return min(FIRST_PAUSE * 2 ** (attempts - 1), LONGEST_PAUSE)


def _reason(error: BaseException) -> str:
    """What may be said of an error: our own messages name no patient, others may."""
    if isinstance(error, IOPFLError):
        return str(error)
    return f"{type(error).__name__} ({error.strerror})" if isinstance(error, OSError) else type(error).__name__
