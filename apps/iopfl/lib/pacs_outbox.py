"""Labels on their way into the PACS: what it does not take is kept, and offered again until it does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from monailabel.interfaces.exception import MONAILabelException
from pydicom import Dataset, dcmread

from iopfl.base.errors import IOPFLError, PACSAwayError
from iopfl.base.files import replacing
from iopfl.lib.label_log import RECOVERED, SUBMITTED, LabelVersion
from iopfl.lib.pacs import PACS
from iopfl.lib.versions import VersionStore

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 15.0


class LabelOutbox:
    """Submitted versions that the PACS has not taken yet; they are those that the versions' logs say so of."""

    def __init__(self, pacs: PACS, versions: VersionStore, build: Callable[[str, LabelVersion], Dataset]) -> None:
        """Args:
        pacs: where labels go.
        versions: the versions of all images' labels.
        build: makes the SEG of an image's version.
        """
        self._pacs = pacs
        self._versions = versions
        self._build = build
        self._known: set[tuple[str, int]] = set()

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
            if not file.is_file():
                ds = self._build(image, version)
                with replacing(file) as temporary:
                    ds.save_as(temporary, enforce_file_format=True)
            ds = dcmread(file)
            if version.sop_instance_uid != ds.SOPInstanceUID:
                self._versions.note(image, "segmentation", number=number, sop_instance_uid=str(ds.SOPInstanceUID))
            self._pacs.store(ds)
            self._versions.note(image, "stored", number=number)
            file.unlink()
            self._known -= {(image, number)}
        logger.info("version %d of %s is in the PACS as %s", number, image, ds.SOPInstanceUID)

    def offer(self, image: str, number: int) -> None:
        """Store a version, or say in the log why it waits.

        Raises:
            PACSAwayError: as all others do.
        """
        try:
            self.store(image, number)
        except PACSAwayError:
            raise
        except Exception as error:  # whatever is the matter with one label keeps no other from the PACS
            foreseen = isinstance(error, IOPFLError | MONAILabelException)
            reason = getattr(error, "msg", None) or error if foreseen else type(error).__name__  # may name a patient
            logger.warning("version %d of %s waits for the PACS: %s", number, image, reason)

    def run(self) -> None:
        """Offer what waits, again and again, as long as the process lives."""
        while True:
            try:
                for image, number in self.waiting():
                    self.offer(image, number)
            except PACSAwayError:
                pass
            except (IOPFLError, OSError) as error:
                logger.warning("what waits for the PACS cannot be read: %s", error)
            time.sleep(_RETRY_SECONDS)
