"""The queue on disk: a file for each received series that says what has been done with it and what is next.

States: `received` (instances come, or the quiet period after them), `segmenting`, `sending`, then
`done`, `refused` (not segmented, with the reason) or `failed` (given up after several attempts, with the reason).
Every change is written whole before it counts, so a killed listener goes on where it was.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from iopfl.base.files import sweep
from iopfl.base.private_files import write_private

logger = logging.getLogger(__name__)

_SUFFIX = ".json"


class State(StrEnum):
    """What is being done with a series."""

    RECEIVED = "received"
    SEGMENTING = "segmenting"
    SENDING = "sending"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


FINISHED = (State.DONE, State.REFUSED)
"""States after which a series may be deleted: nothing of it is still owed to anybody."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A series in the queue. No patient identifiers.

    Attributes:
        series_instance_uid: the Series Instance UID.
        study_instance_uid: the Study Instance UID.
        calling_ae_title: who sent its first instance.
        called_ae_title: and to whom.
        state: the state of the work.
        reason: why it was refused, or what failed last.
        rule: name of the rule that answers it.
        answer: what segmented it.
        content: digest of the files that were segmented.
        instances: how many those were.
        left_out: which of them are not in the image that was segmented, and why.
        segmentation: SOP Instance UID of the SEG, which lies in the outbox.
        sends: digest of what lies there to be sent.
        waiting: names of the destinations that have yet to receive it.
        attempts: failed ones of the present state.
        due: when to try again, seconds of the epoch.
        times: when a stage ended, seconds of the epoch: first, last, complete, read, answered, segmented, sent.
        changed: when the file was written, ISO 8601.
    """

    series_instance_uid: str
    study_instance_uid: str
    calling_ae_title: str = ""
    called_ae_title: str = ""
    state: State = State.RECEIVED
    reason: str = ""
    rule: str = ""
    answer: str = ""
    content: str = ""
    instances: int = 0
    left_out: str = ""
    segmentation: str = ""
    sends: str = ""
    waiting: tuple[str, ...] = ()
    attempts: int = 0
    due: float = 0.0
    times: Mapping[str, float] = field(default_factory=dict)
    changed: str = ""

    def to_json(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Job:
        """Read a file's content.

        Raises:
            ValueError: it is no job.
        """
        values: Any = json.loads(data)
        known = {item.name for item in fields(cls)}
        if not isinstance(values, dict) or not {"series_instance_uid", "study_instance_uid"} <= set(values) <= known:
            raise ValueError("no job of this version")
        times = {str(name): float(when) for name, when in values.get("times", {}).items()}
        changes = {"state": State(values.get("state", "received")), "waiting": tuple(values.get("waiting", ()))}
        return cls(**{**values, **changes, "times": times})


class Queue:
    """The jobs of a folder, by Series Instance UID. For several threads of one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep(folder)
        self._jobs: dict[str, Job] = {}
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            job = _read(path)
            if job is not None:
                self._jobs[job.series_instance_uid] = job

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, series_instance_uid: str) -> Job | None:
        """The job of a series, if there is one."""
        return self._jobs.get(series_instance_uid)

    def jobs(self, *states: State) -> list[Job]:
        """Those in some states, or all; the longest unchanged first."""
        with self._lock:
            found = [job for job in self._jobs.values() if not states or job.state in states]
        return sorted(found, key=lambda job: (job.changed, job.series_instance_uid))

    def put(self, job: Job) -> Job:
        """Write a job, new or changed."""
        with self._lock:
            job = replace(job, changed=datetime.now(UTC).isoformat(timespec="milliseconds"))
            write_private(self.path(job.series_instance_uid), job.to_json())
            self._jobs[job.series_instance_uid] = job
            return job

    def change(self, job: Job, **changes: Any) -> Job | None:
        """Change a job that nobody else has changed since it was read; None = somebody has."""
        with self._lock:
            if self._jobs.get(job.series_instance_uid) is not job:
                return None
            return self.put(replace(job, **changes))

    def remove(self, series_instance_uid: str) -> None:
        """Forget a job."""
        with self._lock:
            self.path(series_instance_uid).unlink(missing_ok=True)
            self._jobs.pop(series_instance_uid, None)

    def path(self, series_instance_uid: str) -> Path:
        """Where the job of a series lies, or would, even if it cannot be read."""
        return self.folder / f"{series_instance_uid}{_SUFFIX}"


def list_jobs(folder: Path) -> list[Job]:
    """The jobs of a queue's folder, which another process may be writing."""
    found = [_read(path) for path in sorted(folder.glob(f"*{_SUFFIX}"))]
    return sorted((job for job in found if job), key=lambda job: (job.changed, job.series_instance_uid))


def _read(path: Path) -> Job | None:
    try:
        job = Job.from_json(path.read_bytes())
        if path.name == f"{job.series_instance_uid}{_SUFFIX}":
            return job
    except FileNotFoundError:
        return None  # removed meanwhile
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    logger.error("%s is no job of the queue and is passed over: send the series again, or delete it", path.name)
    return None
