"""Labels on their way into the PACS: what it does not take is kept, and offered again, after ever longer pauses.

What it refused so often that it will not take it is set aside, with the reason, until an administrator offers it again.
A PACS that does not answer refuses nothing.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from monailabel.interfaces.exception import MONAILabelException
from pydicom import Dataset, dcmread
from pydicom.uid import UID

from iopfl.base.errors import IOPFLError, NotTakenError, PACSAwayError, PACSError
from iopfl.base.files import replacing, write_bytes
from iopfl.dicomweb.client import UnansweredError
from iopfl.labels.log import RECOVERED, SUBMITTED, LabelVersion
from iopfl.labels.versions import VersionStore
from iopfl.pacs.access import PACS

logger = logging.getLogger(__name__)

ATTEMPTS = 30
"""That a PACS refuses, or leaves without an answer, before a label is set aside: with these pauses, in a day."""
_RETRY_SECONDS, _LONGEST_PAUSE = 15.0, 3600.0
"""After a first failure, doubled after each further one, up to the longest."""


@dataclass(frozen=True)
class Failure:
    """How often a version failed to be stored, and why.

    Attributes:
        attempts: so far.
        due: when it is offered again, seconds of the epoch.
        reason: why the last one failed.
        is_hopeless: whether it says that no other attempt would do better.
    """

    attempts: int
    due: float
    reason: str
    is_hopeless: bool = False

    @property
    def is_set_aside(self) -> bool:
        """Whether it is not offered again by itself."""
        return self.is_hopeless or self.attempts >= ATTEMPTS


class LabelOutbox:
    """Submitted versions that the PACS has not taken yet; they are those that the versions' logs say so of."""

    def __init__(
        self, file: Path, pacs: PACS, versions: VersionStore, build: Callable[[str, LabelVersion], Sequence[Dataset]]
    ) -> None:
        """Args:
        file: where failures are kept; without it, what was set aside is offered again.
        pacs: where labels go.
        versions: the versions of all images' labels.
        build: makes what is stored of an image's version, the SEG first.
        """
        self._file = file
        self._pacs = pacs
        self._versions = versions
        self._build = build
        self._known: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self._failures = _read(file)
        self._new = threading.Event()

    @property
    def count(self) -> int:
        """How many wait, as far as is known at once; `waiting` looks."""
        return len(self._known)

    def waiting(self) -> list[tuple[str, int]]:
        """Images and version numbers."""
        found = []
        for image in self._versions.images():
            new = (version for version in self._versions.history(image).counting if not version.is_stored)
            found += [(image, version.number) for version in new if self._is_ours(image, version)]
        self._known = set(found)
        return found

    def failure(self, image: str, number: int) -> Failure | None:
        """How a version failed to be stored, if it did."""
        return self._failures.get((image, number))

    def _is_ours(self, image: str, version: LabelVersion) -> bool:
        """Whether a version was submitted here; if the log has lost that, its SEG that waits still tells."""
        if version.kind == RECOVERED:
            return self._versions.segmentation_file(image, version.number).is_file()
        return version.kind == SUBMITTED

    def store(self, image: str, number: int) -> None:
        """Store a version, at most once: what is sent again after a failure is the same instance.

        Raises:
            IOPFLError: it is not stored yet.
        """
        with self._versions.hold(image):
            history = self._versions.history(image)
            version = history.find(number)
            if version.is_stored or number in history.withdrawn:
                return
            self._known |= {(image, number)}
            file = self._versions.segmentation_file(image, number)
            may_be_there = file.is_file() or bool(version.sop_instance_uid)
            paths = [file, *self._versions.beside_files(image, number)]
            if any(_read_whole(path) is None for path in paths):  # not there yet, or damaged
                self._write(image, version, file)
            ds = dcmread(file)
            if version.sop_instance_uid != ds.SOPInstanceUID:
                self._versions.note(image, "segmentation", number=number, sop_instance_uid=str(ds.SOPInstanceUID))
            uid = self._pacs.store(ds, again=may_be_there)
            if uid != ds.SOPInstanceUID:
                self._versions.note(image, "segmentation", number=number, sop_instance_uid=uid)
            beside = self._versions.beside_files(image, number)
            for path in beside:
                self._store_beside(image, number, dcmread(path), again=may_be_there)
            self._versions.note(image, "stored", number=number)
            for path in (file, *beside):
                path.unlink()
            self._known -= {(image, number)}
            self._note(image, number, None)
        logger.info("version %d of %s is in the PACS as %s", number, image, uid)

    def _write(self, image: str, version: LabelVersion, file: Path) -> None:
        """Write what is stored of a version; the SEG last: once it is there, all is."""
        for old in self._versions.beside_files(image, version.number):
            old.unlink()
        built = self._build(image, version)
        if version.sop_instance_uid and len(built) == 1:  # its file was damaged; the PACS may have the instance
            uid = UID(version.sop_instance_uid)
            built[0].SOPInstanceUID = built[0].file_meta.MediaStorageSOPInstanceUID = uid
        for index, ds in reversed([*enumerate(built)]):
            target = self._versions.beside_file(image, version.number, index) if index else file
            with replacing(target) as temporary:
                ds.save_as(temporary, enforce_file_format=True)

    def _store_beside(self, image: str, number: int, ds: Dataset, *, again: bool) -> None:
        """Store what goes with a label; what the PACS refuses is left out, as the label itself is there.

        Raises:
            PACSAwayError: it does not answer.
        """
        try:
            self._pacs.store(ds, again=again)
        except PACSAwayError:
            raise
        except PACSError as error:
            logger.warning("version %d of %s is in the PACS without its %s: %s", number, image, ds.Modality, error)

    def hand_in(self, image: str, number: int, *, at_once: bool) -> None:
        """Offer a version that was just submitted, or have it offered by the thread for that, where it takes long."""
        if not at_once:
            self._new.set()
            return
        try:
            self.offer(image, number)
        except PACSAwayError as error:
            logger.warning("version %d of %s waits for the PACS: %s", number, image, error)

    def offer(self, image: str, number: int) -> None:
        """Store a version, or say in the log why it waits.

        Raises:
            PACSAwayError: as all others do.
        """
        try:
            self.store(image, number)
        except Exception as error:  # whatever is the matter with one label keeps no other from the PACS
            if isinstance(error, PACSAwayError) and not isinstance(error, UnansweredError):
                raise
            foreseen = isinstance(error, IOPFLError | MONAILabelException)
            said = str(getattr(error, "msg", None) or error)
            reason = said if foreseen else type(error).__name__  # whose text may name a patient
            self._fail(image, number, reason, error)
            if isinstance(error, PACSAwayError):
                raise

    def offer_again(self, image: str, number: int) -> None:
        """Store a version that was set aside, or is not due; raises as `store`."""
        self._note(image, number, None)
        self.hand_in(image, number, at_once=True)

    def run(self) -> None:
        """Offer what waits, again and again, as long as the process lives."""
        while True:
            try:
                for image, number in self.waiting():
                    failure = self.failure(image, number)
                    if failure is None or (not failure.is_set_aside and failure.due <= time.time()):
                        self.offer(image, number)
            except PACSAwayError:
                pass
            except (IOPFLError, OSError) as error:
                logger.warning("what waits for the PACS cannot be read: %s", error)
            self._new.wait(_RETRY_SECONDS)
            self._new.clear()

    def _fail(self, image: str, number: int, reason: str, error: Exception) -> None:
        before = self.failure(image, number)
        attempts = 1 + (before.attempts if before else 0)
        is_hopeless = isinstance(error, NotTakenError)
        if not isinstance(error, PACSError):  # it is no refusal
            attempts = min(attempts, ATTEMPTS - 1)
        pause = min(_RETRY_SECONDS * 2 ** (attempts - 1), _LONGEST_PAUSE)
        failure = Failure(attempts, time.time() + pause, reason, is_hopeless)
        self._note(image, number, failure)
        if failure.is_set_aside:
            logger.error(
                "version %d of %s is set aside after %d attempt%s, until an administrator offers it again: %s",
                *(number, image, attempts, "s" if attempts > 1 else "", reason),
            )
        else:
            logger.warning("version %d of %s waits for the PACS: %s", number, image, reason)

    def _note(self, image: str, number: int, failure: Failure | None) -> None:
        with self._lock:
            if self._failures.get((image, number)) == failure:
                return
            failures = {key: known for key, known in self._failures.items() if key != (image, number)}
            if failure is not None:
                failures[image, number] = failure
            try:
                kept = [[*key, asdict(known)] for key, known in failures.items()]
                write_bytes(self._file, json.dumps(kept).encode())
            except OSError as error:  # a full disk: known until the next start
                logger.warning("how often labels were refused is not kept: %s", error.strerror)
            self._failures = failures


def _read(file: Path) -> dict[tuple[str, int], Failure]:
    try:
        return {(image, number): Failure(**about) for image, number, about in json.loads(file.read_bytes())}
    except (OSError, ValueError, TypeError):  # none, of another version, or damaged
        return {}


def _read_whole(file: Path) -> Dataset | None:
    """An instance that waits; None for one that is not there, or not whole."""
    try:
        ds = dcmread(file)
        if "Rows" not in ds or ds.file_meta.TransferSyntaxUID.is_compressed:
            return ds
        samples = int(ds.get("NumberOfFrames", 1)) * ds.Rows * ds.Columns * ds.SamplesPerPixel
        return ds if len(ds.PixelData) * 8 >= samples * ds.BitsAllocated else None
    except Exception:  # what the parser raises on broken bytes may be anything
        return None
