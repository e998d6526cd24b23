"""The outbox: segmentations on the disk until each destination has them, by C-STORE or STOW-RS.

A segmentation keeps its SOP Instance UID however often it is sent, so a PACS that
got it before a crash here takes the second one for what it is, the same.
"""

from __future__ import annotations

import contextlib
import logging
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread
from pynetdicom.presentation import build_context

from iopfl.base.errors import AssociationError
from iopfl.base.private_files import write_private
from iopfl.dicomweb.client import DICOMweb, Endpoint
from iopfl.dimse.peers import Peer, Timeouts, associated
from iopfl.dimse.rules import Destination, Stow

_SUFFIX = ".dcm"
_STOW_SECONDS = 120.0  # to answer
_WARNINGS = range(0xB000, 0xC000)

logger = logging.getLogger(__name__)


class Outbox:
    """The segmentations of a folder, by SOP Instance UID."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def add(self, ds: Dataset) -> str:
        """Keep a segmentation; returns its SOP Instance UID."""
        buffer = BytesIO()
        ds.save_as(buffer, enforce_file_format=True)
        write_private(self.path(str(ds.SOPInstanceUID)), buffer.getvalue())
        return str(ds.SOPInstanceUID)

    def path(self, sop_instance_uid: str) -> Path:
        """Where a segmentation lies."""
        return self.folder / f"{sop_instance_uid}{_SUFFIX}"

    def keep_only(self, sop_instance_uids: set[str]) -> None:
        """Delete all others: those of series that are gone, or were segmented again."""
        for path in self.folder.glob(f"*{_SUFFIX}"):
            if path.stem not in sop_instance_uids:
                path.unlink(missing_ok=True)


def send(path: Path, destination: Destination, *, ae_title: str, timeouts: Timeouts | None = None) -> None:
    """Send an instance to a destination.

    Args:
        path: of its file.
        destination: where to.
        ae_title: our own, for C-STORE.
        timeouts: of the association.

    Raises:
        AssociationError: a DIMSE peer did not take it.
        PACSError: a DICOMweb server did not take it (`PACSAwayError`: or did not answer).
    """
    ds = dcmread(path)
    if isinstance(destination, Peer):
        _send_by_dimse(ds, destination, ae_title, timeouts)
    else:
        _send_by_stow(ds, destination)


def _send_by_dimse(ds: Dataset, peer: Peer, ae_title: str, timeouts: Timeouts | None) -> None:
    context = build_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
    with associated(peer, [context], ae_title=ae_title, timeouts=timeouts) as assoc:
        answer = assoc.send_c_store(ds)
    if "Status" not in answer:
        raise AssociationError(f"{peer}: no answer to the C-STORE: the association was lost")
    status = int(answer.Status)
    if status in _WARNINGS:
        logger.warning("%s took instance %s with the warning 0x%04X", peer, ds.SOPInstanceUID, status)
    elif status:
        raise AssociationError(f"{peer}: refused instance {ds.SOPInstanceUID} with the status 0x{status:04X}")


def _send_by_stow(ds: Dataset, destination: Stow) -> None:
    to = Endpoint(
        destination.url,
        name=str(destination),
        headers=destination.headers,
        verify=destination.ca or True,
        ca_hint="ca at this destination",
        proxy=destination.proxy,
        attempts=1,  # the queue tries again, and meanwhile sends to others
        wait_seconds=_STOW_SECONDS,
    )
    with contextlib.closing(DICOMweb(to)) as server:
        server.store(ds)
