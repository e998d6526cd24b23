"""The requests that we make of other application entities: C-ECHO, C-FIND, C-GET, C-MOVE and C-STORE."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydicom import Dataset, dcmread, uid
from pydicom.uid import UID
from pynetdicom import build_context, build_role, evt
from pynetdicom.apps.common import ElementPath
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.status import (
    QR_FIND_SERVICE_CLASS_STATUS,
    QR_GET_SERVICE_CLASS_STATUS,
    QR_MOVE_SERVICE_CLASS_STATUS,
    STORAGE_SERVICE_CLASS_STATUS,
    code_to_category,
)

from iopfl.base.errors import AssociationError, ConfigError, SeriesError
from iopfl.base.files import MODE, write_bytes
from iopfl.dicomio.files import read_dataset, reading
from iopfl.dicomio.refusals import IMAGES
from iopfl.dimse.asking import printable
from iopfl.dimse.inbox import check_uid
from iopfl.dimse.peers import Peer, Timeouts, associated
from iopfl.dimse.query import SOP_CLASSES
from iopfl.dimse.scp import (
    OUT_OF_RESOURCES,
    SUCCESS,
    TRANSFER_SYNTAXES,
    UNCOMPRESSED,
    RefusedError,
    read_instance,
    whole_file,
)
from iopfl.dimse.spool import Incoming, Spool, place_in

_STUDY_ROOT, _PATIENT_ROOT = SOP_CLASSES[:3], SOP_CLASSES[3:]
_FIND, _MOVE, _GET = range(3)
_RETRIEVED = (
    *sorted(IMAGES),
    uid.SecondaryCaptureImageStorage,
    uid.SegmentationStorage,
    uid.RTStructureSetStorage,
    uid.KeyObjectSelectionDocumentStorage,
    uid.GrayscaleSoftcopyPresentationStateStorage,
    uid.BasicTextSRStorage,
    uid.EnhancedSRStorage,
    uid.ComprehensiveSRStorage,
)
"""What C-GET may bring: a requestor has to name it beforehand."""
_MAX_CONTEXTS = 128
_QUERY_STATUSES = {**QR_GET_SERVICE_CLASS_STATUS, **QR_MOVE_SERVICE_CLASS_STATUS, **QR_FIND_SERVICE_CLASS_STATUS}
_WARNING, _PENDING = "Warning", "Pending"


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

    def associated(self, contexts: Sequence[Any], **more: Any) -> Any:
        """An association, as a context."""
        return associated(self.peer, contexts, ae_title=self.ae_title, timeouts=self.timeouts, **more)


@dataclass
class Retrieval:
    """What came of a C-GET or C-MOVE.

    Attributes:
        completed: instances that arrived.
        warnings: those that arrived with a warning.
        failed: those that did not.
        failed_uids: of these, as far as the peer says.
    """

    completed: int = 0
    warnings: int = 0
    failed: int = 0
    failed_uids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sent:
    """What came of sending a file.

    Attributes:
        path: of the file.
        sop_instance_uid: of the instance.
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


def build_query(keys: Sequence[str]) -> Dataset:
    """A query of DCMTK's `-k`: `PatientID=1`, `0010,0020=1`, or `PatientID` to be told.

    Without a level it is that of the most specific UID given, or STUDY.

    Raises:
        ConfigError: no such element, or a value that does not fit it.
    """
    query = Dataset()
    for key in keys:
        name, _, value = key.partition("=")
        try:
            # The dictionary has an element without a keyword.
            query = ElementPath(f"{name.strip() or 'none'}={value}").update(query)
        except Exception as error:  # pynetdicom's and pydicom's have no common base
            raise ConfigError(
                f"-k: expected an element such as PatientID=123 or 0010,0020=123, given {key!r}"
            ) from error
    if not query.get("QueryRetrieveLevel"):
        levels = {"IMAGE": "SOPInstanceUID", "SERIES": "SeriesInstanceUID"}
        query.QueryRetrieveLevel = next((level for level, key in levels.items() if query.get(key)), "STUDY")
    return query


def echo(caller: Caller) -> float:
    """Verify that a peer answers; returns the seconds it took.

    Raises:
        AssociationError: it does not.
    """
    started = time.monotonic()
    with caller.associated([build_context(Verification, list(UNCOMPRESSED))]) as assoc:
        _check(caller.peer, assoc.send_c_echo(), "the verification")
    return time.monotonic() - started


def find(caller: Caller, query: Dataset, *, patient_root: bool = False) -> Iterator[Dataset]:
    """What a peer has that matches a query.

    Raises:
        AssociationError: it does not answer, or not to this query.
    """
    model = (_PATIENT_ROOT if patient_root else _STUDY_ROOT)[_FIND]
    with caller.associated([build_context(model, list(UNCOMPRESSED))]) as assoc:
        for status, identifier in assoc.send_c_find(query, model):
            if _check(caller.peer, status, "the query") == _PENDING and identifier is not None:
                yield identifier


def move(caller: Caller, query: Dataset, destination: str, *, patient_root: bool = False) -> Retrieval:
    """Have a peer send what matches a query to a destination that it knows by its AE title.

    Raises:
        AssociationError: it does not answer, or does not do it at all.
    """
    model = (_PATIENT_ROOT if patient_root else _STUDY_ROOT)[_MOVE]
    with caller.associated([build_context(model, list(UNCOMPRESSED))]) as assoc:
        return _follow(caller.peer, assoc.send_c_move(query, destination, model), "to move")


def get(caller: Caller, query: Dataset, folder: Path, *, patient_root: bool = False) -> Retrieval:
    """Bring what matches a query into a folder, a file an instance, named by its UID.

    Raises:
        AssociationError: the peer does not answer, or does not do it at all.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def store(event: Event) -> int:
        came = cast(Spool, cast(Any, event.request).DataSet)
        try:
            instance = read_instance(event)
            if came.failure is not None:
                raise came.failure
            target = folder / f"{check_uid(instance.sop_instance_uid, 'SOP Instance UID')}.dcm"
            content = whole_file(event)
            if isinstance(content, Incoming):
                content.flush_to_disk()
                content.path.chmod(MODE)
                content.path.replace(target)
            else:
                write_bytes(target, b"".join(content))
        except RefusedError as error:
            return error.status
        except SeriesError:
            return 0xC000
        except OSError:
            return OUT_OF_RESOURCES
        finally:
            came.discard()
        return SUCCESS

    model = (_PATIENT_ROOT if patient_root else _STUDY_ROOT)[_GET]
    contexts = [
        build_context(model, list(UNCOMPRESSED)),
        *(build_context(kind, list(TRANSFER_SYNTAXES)) for kind in _RETRIEVED),
    ]
    roles = [build_role(kind, scp_role=True) for kind in _RETRIEVED]
    handlers = [(evt.EVT_C_STORE, store)]
    with caller.associated(contexts, negotiation=roles, handlers=handlers, place=place_in(folder)) as assoc:
        return _follow(caller.peer, assoc.send_c_get(query, model), "to send")


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


def _follow(peer: Peer, responses: Iterator[tuple[Dataset, Dataset | None]], what: str) -> Retrieval:
    """The outcome of a retrieval, from its responses."""
    result = Retrieval()
    for status, identifier in responses:
        counts = {
            "completed": status.get("NumberOfCompletedSuboperations"),
            "warnings": status.get("NumberOfWarningSuboperations"),
            "failed": status.get("NumberOfFailedSuboperations"),
        }
        for name, count in counts.items():
            setattr(result, name, getattr(result, name) if count is None else int(count))
        if identifier is not None and identifier.get("FailedSOPInstanceUIDList"):
            uids = identifier.FailedSOPInstanceUIDList
            result.failed_uids = [uids] if isinstance(uids, str) else [str(uid) for uid in uids]
        is_told_by_counts = bool(result.failed and result.completed)  # that some failed, and that some arrived
        if "Status" not in status or not is_told_by_counts:
            _check(peer, status, what)
    return result


def _check(peer: Peer, status: Dataset, what: str) -> str:
    """The category of a status.

    Raises:
        AssociationError: there is none, or it is a failure.
    """
    if "Status" not in status:
        raise AssociationError(f"{peer}: no answer to the request {what}: the association was lost")
    category = code_to_category(int(status.Status))
    if category not in ("Success", _PENDING, _WARNING):
        raise AssociationError(f"{peer}: refused {what}: {_explain(status, _QUERY_STATUSES)}")
    return category


def _explain(status: Dataset, known: Mapping[int, tuple[str, str]]) -> str:
    """A status in words; empty for success."""
    code = int(status.Status)
    if code == SUCCESS:
        return ""
    comment = status.get("ErrorComment")
    parts = (f"status 0x{code:04X}", known.get(code, ("", ""))[1], printable(comment) if comment else "")
    return ", ".join(part for part in parts if part)
