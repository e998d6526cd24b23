"""The outbox: what is sent of each mask, on the disk until every destination has it, by C-STORE or STOW-RS.

An object keeps its SOP Instance UID however often it is sent, so a PACS that
got it before a crash here takes the second one for what it is, the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.uid import UID
from pynetdicom.presentation import build_context

from iopfl.base.errors import AssociationError, NotTakenError
from iopfl.base.files import sweep
from iopfl.base.private_files import write_private
from iopfl.dicomweb.client import DICOMweb, Endpoint
from iopfl.dicomweb.storing import explain_failure, is_final
from iopfl.dimse.peers import Peer, Timeouts, associated
from iopfl.dimse.rules import Destination, Stow

_SUFFIX = ".dcm"
_BESIDE = "_"  # between the UID of a segmentation and a number
_STOW_SECONDS = 120.0  # to answer
_WARNINGS = range(0xB000, 0xC000)

logger = logging.getLogger(__name__)


class Outbox:
    """What is sent of each mask, by the SOP Instance UID of its segmentation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep(folder)

    def add(self, results: Sequence[Dataset]) -> str:
        """Keep what is sent of a mask, the segmentation first; returns its SOP Instance UID."""
        uid = str(results[0].SOPInstanceUID)
        for number, ds in reversed([*enumerate(results)]):  # once the segmentation is there, all is
            buffer = BytesIO()
            ds.save_as(buffer, enforce_file_format=True)
            path = self.folder / f"{uid}{_BESIDE}{number:04d}{_SUFFIX}" if number else self._path(uid)
            write_private(path, buffer.getvalue())
        return uid

    def paths(self, segmentation: str) -> list[Path]:
        """Where what is sent of a mask lies, the segmentation first."""
        return [self._path(segmentation), *sorted(self.folder.glob(f"{segmentation}{_BESIDE}*{_SUFFIX}"))]

    def digest(self, segmentation: str) -> str:
        """Of all that is sent of a mask; another one, or none, where some of it is damaged or gone."""
        found = hashlib.sha256()
        with contextlib.suppress(OSError):
            for path in self.paths(segmentation):
                found.update(hashlib.sha256(path.read_bytes()).digest())
            return found.hexdigest()
        return ""

    def _path(self, segmentation: str) -> Path:
        return self.folder / f"{segmentation}{_SUFFIX}"

    def keep_only(self, segmentations: set[str]) -> None:
        """Delete all others: those of series that are gone, or were segmented again."""
        for path in self.folder.glob(f"*{_SUFFIX}"):
            if path.stem.partition(_BESIDE)[0] not in segmentations:
                path.unlink(missing_ok=True)


def send(
    paths: Sequence[Path],
    destination: Destination,
    *,
    ae_title: str,
    timeouts: Timeouts | None = None,
    again: bool = False,
) -> None:
    """Send instances to a destination, which may have some of them from an attempt before.

    Args:
        paths: the paths of their files.
        destination: where to.
        ae_title: our own, for C-STORE.
        timeouts: how long to wait in the association.
        again: whether they were sent before: a DICOMweb server gets those alone that it does not have.

    Raises:
        NotTakenError: a destination did not take one, nor would it another time.
        AssociationError: a DIMSE peer did not take one.
        PACSError: a DICOMweb server did not take one (`PACSAwayError`: or did not answer).
    """
    if isinstance(destination, Peer):
        _send_by_dimse(paths, destination, ae_title, timeouts)
    else:
        _send_by_stow(paths, destination, again)


def _send_by_dimse(paths: Sequence[Path], peer: Peer, ae_title: str, timeouts: Timeouts | None) -> None:
    headers = (dcmread(path, specific_tags=["SOPClassUID"]) for path in paths)
    kinds = dict.fromkeys((ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in headers)
    contexts = [build_context(*kind) for kind in kinds]
    with associated(peer, contexts, ae_title=ae_title, timeouts=timeouts) as assoc:
        for path in paths:
            ds = dcmread(path)
            try:
                answer = assoc.send_c_store(ds)
            except ValueError as error:  # the peer takes objects of other kinds alone
                name = UID(ds.SOPClassUID).name
                raise NotTakenError(f"{peer}: takes no {name}: leave it out of the rule's results") from error
            _check_stored(answer, ds, peer)


def _check_stored(answer: Dataset, ds: Dataset, peer: Peer) -> None:
    if "Status" not in answer:
        raise AssociationError(f"{peer}: no answer to the C-STORE: the association was lost")
    status = int(answer.Status)
    if status in _WARNINGS:
        logger.warning("%s took instance %s with the warning 0x%04X", peer, ds.SOPInstanceUID, status)
    elif status:
        meaning = explain_failure(status)
        said = f"{peer}: refused instance {ds.SOPInstanceUID} with the status 0x{status:04X}"
        raise (NotTakenError if is_final(status) else AssociationError)(said + (f" ({meaning})" if meaning else ""))


def _send_by_stow(paths: Sequence[Path], destination: Stow, again: bool) -> None:
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
        for path in paths:
            server.store(dcmread(path), again=again)
