"""What is done to the queue besides the work: retries and removals that a person asks for, and making room.

`iopfl dicom queue retry|drop` is another process than the listener. Where one runs, the wish is left
as a file in the queue's folder, and the listener does it; where none runs, it is done at once.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from iopfl.base.errors import ConfigError
from iopfl.base.locks import try_hold
from iopfl.dimse.inbox import Inbox, check_uid
from iopfl.dimse.outbox import Outbox
from iopfl.dimse.queue import FINISHED, Job, Queue, State, list_jobs

logger = logging.getLogger(__name__)

_DAY = 24 * 3600.0
_WISH = ".wish"


def lock_file(folder: Path) -> Path:
    """Held by the listener of a folder."""
    return folder / "listener.lock"


def retry(inbox: Inbox, job: Job) -> None:
    """Try a series again: send what was not sent, or segment it.

    Raises:
        ConfigError: there is nothing to try.
    """
    if job.state is State.DONE:
        raise ConfigError(f"series {job.series_instance_uid} is done: send it again, changed, to have it done again")
    state = State.SENDING if job.waiting and job.segmentation else State.SEGMENTING
    inbox.queue.put(replace(job, state=state, attempts=0, due=0.0, reason=""))


def drop(inbox: Inbox, job: Job) -> None:
    """Delete a series, whatever is still owed of it."""
    inbox.remove(job, finished=False)


ACTIONS: Mapping[str, Callable[[Inbox, Job], None]] = {"retry": retry, "drop": drop}


def ask(folder: Path, action: str, series_instance_uid: str) -> bool:
    """Have an action done to a series.

    Args:
        folder: the folder that holds inbox, outbox and queue.
        action: one of `ACTIONS`.
        series_instance_uid: the Series Instance UID of a job.

    Returns:
        Whether it is done; False = a listener will, after what it does now.

    Raises:
        ConfigError: there is no such series, or nothing to be done.
    """
    jobs = {job.series_instance_uid: job for job in list_jobs(folder / "queue")}
    if series_instance_uid not in jobs:
        raise ConfigError(f"no series {series_instance_uid[:64]!r} in the queue; iopfl dicom queue list shows them")
    with try_hold(lock_file(folder)) as held:
        if held is None:
            (folder / "queue" / f"{check_uid(series_instance_uid, 'series')}.{action}{_WISH}").touch(mode=0o600)
            return False
        inbox = Inbox(folder, Queue(folder / "queue"))
        job = inbox.queue.get(series_instance_uid)
        if job is not None:
            ACTIONS[action](inbox, job)
        return True


def take_wishes(inbox: Inbox) -> None:
    """Do what `ask` left."""
    for path in sorted(inbox.queue.folder.glob(f"*{_WISH}")):
        uid, _, action = path.name.removesuffix(_WISH).rpartition(".")
        job = inbox.queue.get(uid)
        if job is not None and action in ACTIONS:
            try:
                ACTIONS[action](inbox, job)
                logger.info("series %s: %s, as asked", uid, action)
            except ConfigError as error:
                logger.warning("%s", error)
        path.unlink(missing_ok=True)


def make_room(inbox: Inbox, outbox: Outbox, *, keep_days: float) -> None:
    """Delete finished series that are old, or too much; never one that is still owed to somebody."""
    oldest = time.time() - keep_days * _DAY
    for job in inbox.queue.jobs(*FINISHED):
        too_much = inbox.room.is_crowded
        if not too_much and _finished(job) > oldest:
            break
        if inbox.remove(job):
            why = "to make room" if too_much else "it was long enough here"
            logger.info("series %s, %s, deleted: %s", job.series_instance_uid, job.state, why)
    outbox.keep_only({job.segmentation for job in inbox.queue.jobs()})


def _finished(job: Job) -> float:
    """When a job got its state, seconds of the epoch."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(job.changed).timestamp()
    return 0.0
