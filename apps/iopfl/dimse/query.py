"""Query and retrieve over the inbox: C-FIND, C-MOVE to a destination of the rule file, and C-GET (PS3.4, annex C).

What was received and not yet deleted can be found, by patient, study, series or
image. Relational queries are answered too: no key above the level is needed.
Of the instances only what is asked for is read, and of matches no more than can be held.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import translate
from pathlib import Path
from typing import Any, cast

from pydicom import Dataset, dcmread
from pydicom.dataelem import DataElement
from pydicom.uid import UID
from pynetdicom import build_context, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from iopfl.dimse.asking import printable
from iopfl.dimse.inbox import Inbox
from iopfl.dimse.peers import Peer
from iopfl.dimse.scp import Record, describe_peer, record_nothing
from iopfl.dimse.sockets import OnDisk

logger = logging.getLogger(__name__)

PENDING, CANCEL, SUCCESS = 0xFF00, 0xFE00, 0x0000
IDENTIFIER_MISMATCH, TOO_MANY = 0xA900, 0xA700
MAX_FOUND = 20_000
"""Matches of a query, and instances of a retrieval (of which the standard can count 65,535)."""
LARGE = 32 * 2**20
"""Bytes of an instance from which on it is sent from its file, in no other transfer syntax."""

SOP_CLASSES: tuple[str, ...] = (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelMove,
    PatientRootQueryRetrieveInformationModelGet,
)

_LEVELS = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}
_NO_KEYS = ("QueryRetrieveLevel", "SpecificCharacterSet", "RetrieveAETitle", "InstanceAvailability")
_COUNTED = ("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "NumberOfSeriesRelatedInstances")
_ALWAYS_READ = (*_LEVELS.values(), "SOPClassUID", "SpecificCharacterSet", "Modality")
_RANGED = ("DA", "TM", "DT")
_MAX_CONTEXTS = 128


class QueryRetrieve:
    """The services, to be given to the SCP.

    Args:
        inbox: what is found.
        find_peer: where an AE title lives, for C-MOVE; None = nowhere.
        record: records each series that is retrieved.
    """

    def __init__(self, inbox: Inbox, find_peer: Callable[[str], Peer | None], record: Record = record_nothing) -> None:
        self._inbox, self._find_peer, self._record = inbox, find_peer, record

    @property
    def service(self) -> tuple[Sequence[str], Sequence[Any]]:
        """SOP classes and handlers."""
        return SOP_CLASSES, [(evt.EVT_C_FIND, self._find), (evt.EVT_C_MOVE, self._move), (evt.EVT_C_GET, self._get)]

    def _find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        query = _read_query(event)
        if query is None:
            yield IDENTIFIER_MISMATCH, None
            return
        try:
            found = find(self._inbox, query)
        except TooManyError:
            logger.warning("%s asked for more than %d matches", describe_peer(event.assoc), MAX_FOUND)
            yield TOO_MANY, None
            return
        logger.info("%s asked for what is here at %s level", describe_peer(event.assoc), query.QueryRetrieveLevel)
        for group in found:
            if event.is_cancelled:
                yield CANCEL, None
                return
            yield PENDING, _build_answer(query, group, event.assoc.acceptor.ae_title)

    def _move(self, event: Event) -> Iterator[Any]:
        title = str(cast(Any, event.request).MoveDestination or "").strip()
        peer = self._find_peer(title)
        if peer is None:
            wanted = printable(title)
            logger.warning(
                "%s wants instances sent to %s: no destination of the rules", describe_peer(event.assoc), wanted
            )
            yield None, None
            return
        files, refusal = self._retrieve(event)
        tls = (peer.tls.client_context(), peer.tls.name or peer.host) if peer.tls else None
        # What is refused, or cannot be read, is said on an association too, hence needs one.
        contexts = _contexts(files) or [build_context(Verification)]
        yield peer.host, peer.port, {"contexts": contexts, "tls_args": tls}
        yield from self._send(event, files, refusal, "dicom move", str(peer))

    def _get(self, event: Event) -> Iterator[Any]:
        yield from self._send(event, *self._retrieve(event), "dicom get", describe_peer(event.assoc))

    def _retrieve(self, event: Event) -> tuple[list[Path], int]:
        """Files that a request asks for, and the status it is refused with; 0 = it is not."""
        query = _read_query(event)
        if query is None or not query.get(_LEVELS[query.QueryRetrieveLevel]):  # everything there is, by mistake
            return [], IDENTIFIER_MISMATCH
        try:
            return [path for group in find(self._inbox, query, whole=True) for path, _ in group], 0
        except TooManyError:
            logger.warning("%s wants more than %d instances", describe_peer(event.assoc), MAX_FOUND)
            return [], TOO_MANY

    def _send(self, event: Event, files: list[Path], refusal: int, what: str, to: str) -> Iterator[Any]:
        if refusal:
            yield 1
            yield refusal, None
            return
        logger.info("%s retrieves %d instances", describe_peer(event.assoc), len(files))
        yield len(files)
        for series, count in Counter(path.parent.name for path in files).items():
            about = {"series": series, "instances": str(count), "to": to}
            self._record(printable(event.assoc.requestor.ae_title), what, about)
        for path in files:
            if event.is_cancelled:
                yield CANCEL, None
                return
            yield PENDING, _read(path) or _name_only(path)


class TooManyError(Exception):
    """More matches a query than can be held."""


def find(inbox: Inbox, query: Dataset, *, whole: bool = False) -> list[list[tuple[Path, Dataset]]]:
    """What matches a query, an entity of its level at a time.

    Args:
        inbox: where to look.
        query: with a level and keys.
        whole: every instance of each entity; otherwise those that were needed to tell, one per series.

    Returns:
        The files of each entity, and of their headers what the query names.

    Raises:
        TooManyError: more than `MAX_FOUND` of them.
    """
    level, tags = query.QueryRetrieveLevel, [*_ALWAYS_READ, *(element.tag for element in query)]
    groups: dict[str, list[tuple[Path, Dataset]]] = {}
    count = 0
    for job in inbox.queue.jobs():
        files = inbox.files(job.series_instance_uid)
        for path in files if level == "IMAGE" else files[:1]:
            ds = _read_header(path, tags)
            if ds is None or not matches(query, ds):
                continue
            kept = [(other, ds) for other in files] if whole and level != "IMAGE" else [(path, ds)]
            count += len(kept)
            if count > MAX_FOUND:
                raise TooManyError
            groups.setdefault(_text(ds, _LEVELS[level]), []).extend(kept)
            if level != "IMAGE":
                ds.add_new("NumberOfSeriesRelatedInstances", "IS", len(files))
    return list(groups.values())


def matches(query: Dataset, ds: Dataset) -> bool:
    """Whether a data set matches every key of a query (PS3.4, C.2.2.2).

    Sequences, and keys that nothing is counted for, match everything, as optional keys may.
    """
    for key in query:
        if key.keyword in (*_NO_KEYS, *_COUNTED, "ModalitiesInStudy") or key.VR == "SQ" or key.is_empty:
            continue
        if not _matches_key(key, _find_element(ds, key)):
            return False
    return True


def _find_element(ds: Dataset, key: DataElement) -> DataElement | None:
    """A data set's element for a key; None where there is none, or none that can be read."""
    try:
        return ds.get(key.tag)
    except Exception:  # pydicom's have no common base, and instances come from anybody
        return None


def _matches_key(key: DataElement, element: DataElement | None) -> bool:
    wanted = [str(value) for value in (key.value if key.VM > 1 else [key.value])]
    if wanted == ["*"]:
        return True
    values = [] if element is None or element.is_empty else element.value if element.VM > 1 else [element.value]
    given = [str(value) for value in values]
    if key.VR == "UI":
        return any(value in wanted for value in given)
    if key.VR in _RANGED and "-" in wanted[0]:
        first, _, last = wanted[0].partition("-")
        return any((not first or value >= first) and (not last or value[: len(last)] <= last) for value in given)
    # Names are found whatever their case (PS3.4, C.2.2.2.1), and the rest does no harm in being so.
    patterns = [re.compile(translate(_only_wildcards(value)), re.IGNORECASE) for value in wanted]
    return any(pattern.match(value) for pattern in patterns for value in given)


def _text(ds: Dataset, keyword: str) -> str:
    """An element's value; empty where there is none that can be read."""
    try:
        return str(ds.get(keyword) or "")
    except Exception:  # as above
        return ""


def _only_wildcards(value: str) -> str:
    """A value of DICOM, which knows `*` and `?` alone, for `fnmatch`."""
    return value.replace("[", "[[]")


def _read_query(event: Event) -> Dataset | None:
    """A request's identifier; None where it has no level, or cannot be read."""
    try:
        query = event.identifier
        query.QueryRetrieveLevel = str(query.get("QueryRetrieveLevel") or "").strip().upper()
        patient_root = UID(str(event.context.abstract_syntax)) in SOP_CLASSES[3:]
        known = list(_LEVELS) if patient_root else list(_LEVELS)[1:]
        if query.QueryRetrieveLevel in known:
            matches(query, Dataset())  # every key is read here, or nowhere
            return query
        reason = "no level that there is"
    except Exception as error:  # pydicom's have no common base
        reason = type(error).__name__
    logger.warning("%s asked something that is not understood: %s", describe_peer(event.assoc), reason)
    return None


def _build_answer(query: Dataset, group: list[tuple[Path, Dataset]], ae_title: str) -> Dataset:
    """The identifier of a match: the keys that were asked for, as the entity has them."""
    headers = [ds for _, ds in group]
    first, answer = headers[0], Dataset()
    counts = {
        "NumberOfStudyRelatedSeries": len(headers),
        "NumberOfStudyRelatedInstances": sum(int(ds.get("NumberOfSeriesRelatedInstances") or 1) for ds in headers),
        "NumberOfSeriesRelatedInstances": int(first.get("NumberOfSeriesRelatedInstances") or 1),
        "ModalitiesInStudy": sorted({_text(ds, "Modality") for ds in headers} - {""}),
    }
    for key in query:
        if key.keyword in counts:
            setattr(answer, key.keyword, counts[key.keyword])
        elif key.keyword not in _NO_KEYS:
            element = _find_element(first, key)
            if element is not None and element.VR == key.VR:
                answer[key.tag] = element
            else:
                answer.add_new(key.tag, key.VR, [] if key.VR == "SQ" else None)
    if "SpecificCharacterSet" in first:
        answer.SpecificCharacterSet = first.SpecificCharacterSet
    answer.QueryRetrieveLevel = query.QueryRetrieveLevel
    answer.RetrieveAETitle, answer.InstanceAvailability = ae_title, "ONLINE"
    return answer


def _contexts(files: Sequence[Path]) -> list[Any]:
    """Presentation contexts for files: each SOP class and transfer syntax that there is among them."""
    kinds = {}
    for path in files:
        ds = _read_header(path, ["SOPClassUID"])
        if ds is not None:
            kinds[str(ds.get("SOPClassUID")), str(ds.file_meta.TransferSyntaxUID)] = True
    return [build_context(*kind) for kind in kinds][:_MAX_CONTEXTS]


def _name_only(path: Path) -> Dataset:
    """What stands for an instance that cannot be read: it is counted as failed."""
    ds = Dataset()
    ds.SOPInstanceUID = path.stem
    return ds


def _read(path: Path) -> Dataset | None:
    """An instance to be sent; None where it was deleted meanwhile, or cannot be read."""
    try:
        return OnDisk(path, path.stem) if path.stat().st_size > LARGE else dcmread(path)
    except Exception:  # pydicom's have no common base, and files come from anybody
        return None


def _read_header(path: Path, tags: Sequence[Any]) -> Dataset | None:
    """Some elements of an instance; None as above."""
    try:
        return dcmread(path, stop_before_pixels=True, specific_tags=list(tags))
    except Exception:  # as above
        return None
