"""The requests that we make of other application entities: C-ECHO and C-STORE."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.status import (
    STORAGE_SERVICE_CLASS_STATUS,
    VERIFICATION_SERVICE_CLASS_STATUS,
    code_to_category,
)

from iopfl.base.errors import AssociationError, SeriesError
from iopfl.dicomio.files import read_dataset, reading
from iopfl.dimse.asking import printable
from iopfl.dimse.peers import Peer, Timeouts, associated
from iopfl.dimse.scp import (
    SUCCESS,
    UNCOMPRESSED,
)

_MAX_CONTEXTS = 128
_WARNING = "Warning"


@dataclass(frozen=True)
class Caller:
    """Who calls whom.

    Attributes:
        peer: who is called.
        ae_title: our own.
        timeouts: None = the defaults.
    """

    peer: Peer
    ae_title: str = "IOPFL"
    timeouts: Timeouts | None = None

    def associated(self, contexts: Sequence[Any]) -> Any:
        """An association, as a context."""
        return associated(self.peer, contexts, ae_title=self.ae_title, timeouts=self.timeouts)


@dataclass(frozen=True)
class Sent:
    """What came of sending a file.

    Attributes:
        path: the file.
        sop_instance_uid: its SOP Instance UID.
        status: that the peer answered; None = it was not sent.
        reason: why it was not taken, or of the warning; empty = it was.
        is_transcoded: whether it was decompressed, since the peer does not take the file's transfer syntax.
    """

    path: Path
    sop_instance_uid: str
    status: int | None
    reason: str = ""
    is_transcoded: bool = False

    @property
    def is_taken(self) -> bool:
        """Whether the peer has it."""
        return self.status is not None and (self.status == SUCCESS or code_to_category(self.status) == _WARNING)


def echo(caller: Caller) -> float:
    """Verify that a peer answers; returns the seconds it took.

    Raises:
        AssociationError: it does not.
    """
    started = time.monotonic()
    with caller.associated([build_context(Verification, list(UNCOMPRESSED))]) as assoc:
        answer = assoc.send_c_echo()
    if "Status" not in answer:
        raise AssociationError(f"{caller.peer}: no answer to the verification: the association was lost")
    if int(answer.Status) != SUCCESS:
        raise AssociationError(
            f"{caller.peer}: refused the verification: {_explain(answer, VERIFICATION_SERVICE_CLASS_STATUS)}"
        )
    return time.monotonic() - started


def list_instances(paths: Sequence[Path]) -> dict[Path, Dataset]:
    """Headers of DICOM files; folders are searched, and what in them is no DICOM is passed over.

    Raises:
        SeriesError: a file that was named is no DICOM instance, or there is none at all.
    """
    found: dict[Path, Dataset] = {}
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            with reading(file.name):
                ds = read_dataset(file, pixels=False)
            if ds is not None and ds.get("SOPClassUID") and ds.get("SOPInstanceUID"):
                found[file] = ds
            elif not path.is_dir():
                raise SeriesError(f"{file.name}: expected a DICOM instance, given another file")
    if not found:
        raise SeriesError("expected DICOM instances to send, found none")
    return found


def send(caller: Caller, instances: dict[Path, Dataset]) -> Iterator[Sent]:
    """Send files, as they are where the peer takes their transfer syntax, decompressed where it does not.

    Args:
        caller: who calls whom.
        instances: of `list_instances`.

    Raises:
        AssociationError: there is no association, or it was lost.
    """
    kinds = {(str(ds.SOPClassUID), str(ds.file_meta.TransferSyntaxUID)) for ds in instances.values()}
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in sorted(kinds)]
    for sop_class in sorted({sop_class for sop_class, _ in kinds}):
        contexts += [build_context(sop_class, syntax) for syntax in UNCOMPRESSED if (sop_class, syntax) not in kinds]
    if len(contexts) > _MAX_CONTEXTS:
        raise SeriesError(f"expected at most {_MAX_CONTEXTS} kinds of instances at once, given {len(contexts)}")
    with caller.associated(contexts) as assoc:
        accepted = {
            (str(context.abstract_syntax), str(context.transfer_syntax[0])) for context in assoc.accepted_contexts
        }
        for number, (path, ds) in enumerate(instances.items()):
            yield _send_one(caller.peer, assoc, path, ds, accepted, number % 0xFFFF + 1)


def _send_one(
    peer: Peer, assoc: Association, path: Path, header: Dataset, accepted: set[tuple[str, str]], message: int
) -> Sent:
    sop_class, instance = str(header.SOPClassUID), str(header.SOPInstanceUID)
    syntax = UID(header.file_meta.TransferSyntaxUID)
    as_it_is = (sop_class, syntax) in accepted and "MediaStorageSOPInstanceUID" in header.file_meta
    if not as_it_is and not any((sop_class, other) in accepted for other in UNCOMPRESSED):
        name = UID(sop_class).name
        return Sent(path, instance, None, f"the peer takes no {name}, in {syntax.name} or uncompressed")
    what: Path | Dataset = path
    if not as_it_is:
        try:
            what = dcmread(path, force=True)
            what.file_meta = header.file_meta
            if syntax.is_compressed:
                what.decompress(generate_instance_uid=False)
        except Exception as error:  # decoders raise what they like
            reason = f"the peer does not take {syntax.name}, and it cannot be decoded here: {type(error).__name__}"
            return Sent(path, instance, None, reason)
    try:
        answer = assoc.send_c_store(what, msg_id=message)
    except RuntimeError as error:
        raise AssociationError(f"{peer}: the association was lost: send the rest again") from error
    except Exception as error:  # pydicom's have no common base
        return Sent(path, instance, None, f"cannot be encoded: {type(error).__name__}")
    if "Status" not in answer:
        raise AssociationError(f"{peer}: no answer to a C-STORE, the association was lost: send the rest again")
    return Sent(
        path,
        instance,
        int(answer.Status),
        _explain(answer, STORAGE_SERVICE_CLASS_STATUS),
        syntax.is_compressed and not as_it_is,
    )


def _explain(status: Dataset, known: Mapping[int, tuple[str, str]]) -> str:
    """A status in words; empty for success."""
    code = int(status.Status)
    if code == SUCCESS:
        return ""
    comment = status.get("ErrorComment")
    parts = (f"status 0x{code:04X}", known.get(code, ("", ""))[1], printable(comment) if comment else "")
    return ", ".join(part for part in parts if part)
