"""Storage commitment, push model, as SCP (PS3.4, annex J): says which instances this side holds.

Off unless asked for: a modality that is told so may delete its own, and what lies
here is deleted after a while. Instances are on the disk before the answer goes out.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pynetdicom import build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from iopfl.base.errors import AssociationError
from iopfl.base.files import sync_folder
from iopfl.dicomio.showing import show_uid
from iopfl.dimse.asking import printable
from iopfl.dimse.inbox import Inbox
from iopfl.dimse.peers import Peer, Timeouts, associated
from iopfl.dimse.scp import describe_peer

logger = logging.getLogger(__name__)

WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
REQUEST, COMMITTED, FAILURES = 1, 1, 2
"""Action Type ID, and Event Type IDs (PS3.4, J.3)."""
NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0112, 0x0119
"""Failure Reasons (PS3.3, C.14.1.1)."""
NO_SUCH_ACTION, INVALID_ARGUMENT, NO_SUCH_OBJECT, RESOURCE_LIMITATION = 0x0123, 0x0115, 0x0112, 0x0213
"""Statuses of N-ACTION."""

_WAIT_SECONDS = 1.0
"""For the requestor to release its association; one that keeps it open is answered on it."""
_ATTEMPTS, _PAUSE_SECONDS = 5, 10.0
_AT_ONCE = 16  # requests that have yet to be answered, each by a thread


class Commitment:
    """The service, to be given to the SCP.

    Args:
        inbox: what is held.
        find_peer: where an AE title lives, for an answer on an association of its own.
        ae_title: our own.
        timeouts: how long to wait in such an association.
    """

    def __init__(
        self, inbox: Inbox, find_peer: Callable[[str], Peer | None], *, ae_title: str, timeouts: Timeouts | None = None
    ) -> None:
        self._inbox, self._find_peer = inbox, find_peer
        self._ae_title, self._timeouts = ae_title, timeouts
        self._places = threading.BoundedSemaphore(_AT_ONCE)

    @property
    def service(self) -> tuple[Sequence[str], Sequence[Any]]:
        """SOP classes and handlers."""
        return [StorageCommitmentPushModel], [(evt.EVT_N_ACTION, self._act)]

    def _act(self, event: Event) -> tuple[int, None]:
        request = cast(Any, event.request)
        if request.RequestedSOPInstanceUID != WELL_KNOWN_INSTANCE:
            return NO_SUCH_OBJECT, None
        if event.action_type != REQUEST:
            return NO_SUCH_ACTION, None
        try:
            asked = event.action_information
            transaction = str(asked.TransactionUID)
            wanted = [
                (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
                for item in asked.ReferencedSOPSequence
            ]
        except Exception as error:  # pydicom's have no common base
            reason = type(error).__name__
            logger.warning("%s asked for a commitment that cannot be read: %s", describe_peer(event.assoc), reason)
            return INVALID_ARGUMENT, None
        if not self._places.acquire(blocking=False):
            logger.warning("%s asked for a commitment while %d wait: refused", describe_peer(event.assoc), _AT_ONCE)
            return RESOURCE_LIMITATION, None
        threading.Thread(
            target=self._report, args=(event.assoc, transaction, wanted), name="dicom-commitment", daemon=True
        ).start()
        return 0x0000, None

    def _report(self, assoc: Association, transaction: str, wanted: Sequence[tuple[str, str]]) -> None:
        """Say what is held, and leave the place to another."""
        try:
            self._say(assoc, transaction, wanted)
        finally:
            self._places.release()

    def _say(self, assoc: Association, transaction: str, wanted: Sequence[tuple[str, str]]) -> None:
        """Say what is held, on the requestor's association or one of our own."""
        result = self.judge(transaction, wanted)
        peer = self._find_peer(printable(assoc.requestor.ae_title))
        where = describe_peer(assoc)
        time.sleep(_WAIT_SECONDS)
        for attempt in range(_ATTEMPTS):
            try:
                if assoc.is_established:
                    # The association's own loop is still on its way to the pause that sending asks it for.
                    assoc._reactor_checkpoint.clear()
                    time.sleep(_WAIT_SECONDS / 10)
                    _send_report(assoc, result)
                elif peer is not None:
                    context, role = (
                        build_context(StorageCommitmentPushModel),
                        build_role(StorageCommitmentPushModel, scp_role=True),
                    )
                    with associated(
                        peer, [context], ae_title=self._ae_title, timeouts=self._timeouts, negotiation=[role]
                    ) as own:
                        _send_report(own, result)
                else:
                    logger.warning("%s released before the commitment, and is no destination of the rules", where)
                    return
                logger.info("told %s what is committed of transaction %s", where, show_uid(transaction))
                return
            except (AssociationError, RuntimeError, ValueError) as error:
                logger.warning("commitment to %s, attempt %d of %d: %s", where, attempt + 1, _ATTEMPTS, error)
                time.sleep(_PAUSE_SECONDS)

    def judge(self, transaction: str, wanted: Sequence[tuple[str, str]]) -> Dataset:
        """The event information: which instances are held, and which not and why."""
        result = Dataset()
        result.TransactionUID = transaction
        held: list[Dataset] = []
        failed: list[Dataset] = []
        for sop_class, instance in wanted:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
            reason = self._find_failure(sop_class, instance)
            if reason:
                item.FailureReason = reason
            (failed if reason else held).append(item)
        result.ReferencedSOPSequence = held
        if failed:
            result.FailedSOPSequence = failed
        return result

    def _find_failure(self, sop_class: str, instance: str) -> int:
        """Why an instance cannot be committed to; 0 = it lies on the disk."""
        path = self._inbox.find(instance)
        try:
            if path is None:
                return NO_SUCH_INSTANCE
            if str(read_file_meta_info(path).MediaStorageSOPClassUID) != sop_class:  # ours, whatever lies behind it
                return CLASS_CONFLICT
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(path.parent)
        except (OSError, InvalidDicomError, AttributeError, ValueError):  # gone, or damaged on the disk
            return NO_SUCH_INSTANCE
        return 0


def _send_report(assoc: Association, result: Dataset) -> None:
    kind = FAILURES if "FailedSOPSequence" in result else COMMITTED
    status, _ = assoc.send_n_event_report(result, kind, StorageCommitmentPushModel, WELL_KNOWN_INSTANCE)
    if "Status" not in status or status.Status:
        raise AssociationError(f"no answer, or a refusal, to the event report: {status.get('Status', 'none')}")
