"""Which image is lent to whom: a case that one annotator has open is not offered to another."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from iopfl.base.files import write_bytes
from iopfl.core.task import Task
from iopfl.labels.checked import CheckedDatastore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """One image lent.

    Attributes:
        image: which.
        annotator: to whom; "" = to somebody who did not say who they are.
        until: UTC, ISO 8601.
    """

    image: str
    annotator: str
    until: str

    @property
    def has_ended(self) -> bool:
        """Whether the time is over."""
        return datetime.fromisoformat(self.until) <= datetime.now(UTC)


class LeaseStore:
    """The leases of a datastore, in one file that is whole at any time; for the one process that serves people."""

    def __init__(self, path: Path, *, minutes: float) -> None:
        self._path = path
        self._minutes = minutes
        self._lock = threading.Lock()
        self._leases = {lease.image: lease for lease in self._read()}

    def active(self) -> list[Lease]:
        """Leases that have not ended, the one that ends first before the others."""
        with self._lock:
            found = [lease for lease in self._leases.values() if not lease.has_ended]
        return sorted(found, key=lambda lease: lease.until)

    def find(self, image: str) -> Lease | None:
        """An image's lease."""
        return next((lease for lease in self.active() if lease.image == image), None)

    def lend(self, image: str, annotator: str) -> bool:
        """Lend an image, or lend it on to who has it; False where somebody else has it."""
        with self._lock:
            lease = self._leases.get(image)
            if lease is not None and lease.annotator != annotator and not lease.has_ended:
                return False
            until = datetime.now(UTC) + timedelta(minutes=self._minutes)
            self._leases[image] = Lease(image, annotator, until.isoformat(timespec="seconds"))
            self._write()
            return True

    def end(self, image: str) -> None:
        """End an image's lease, if there is one: it was submitted."""
        with self._lock:
            if self._leases.pop(image, None) is not None:
                self._write()

    def _read(self) -> Iterator[Lease]:
        try:
            kept = [Lease(**lease) for lease in json.loads(self._path.read_bytes())]
            # A clock that was ahead when an image was lent must not keep it for longer than the time there is.
            latest = datetime.now(UTC) + timedelta(minutes=self._minutes)
            untils = [min(datetime.fromisoformat(lease.until), latest) for lease in kept]
            for lease, until in zip(kept, untils, strict=True):
                yield replace(lease, until=until.isoformat(timespec="seconds"))
        except FileNotFoundError:
            return
        except (ValueError, TypeError) as error:  # nothing is lost but who has what open
            logger.warning("%s cannot be read (%s): all images count as not lent", self._path.name, error)

    def _write(self) -> None:
        kept = [asdict(lease) for lease in self._leases.values() if not lease.has_ended]
        try:
            write_bytes(self._path, json.dumps(kept).encode())
        except OSError as error:  # it holds until the server ends
            logger.warning("%s cannot be written (%s)", self._path.name, error.strerror)


class Offered:
    """A datastore as a strategy sees it: some of its unlabeled images are not there."""

    def __init__(self, datastore: CheckedDatastore, hidden: Collection[str], task: Task | None) -> None:
        """Args:
        datastore: all of it.
        hidden: images that are not offered.
        task: what images are to be labeled for; None = for any.
        """
        self._datastore = datastore
        self._hidden = set(hidden)
        self._task = task

    def get_unlabeled_images(self, *arguments: Any, **options: Any) -> list[str]:
        """The images without a label that may be offered."""
        return self._filter(self._datastore.get_unlabeled_images(*arguments, **options))

    def get_labeled_images(self, *arguments: Any, **options: Any) -> list[str]:
        """The images with a label that may be offered."""
        return self._filter(self._datastore.get_labeled_images(*arguments, **options))

    def list_images(self) -> list[str]:
        """All images that may be offered."""
        return self._filter(self._datastore.list_images())

    def _filter(self, images: list[str]) -> list[str]:
        offered = [image for image in images if image not in self._hidden]
        return offered if self._task is None else self._datastore.images_for(self._task, offered)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._datastore, name)
