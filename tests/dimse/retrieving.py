"""Queries and retrievals as pynetdicom's own client makes them: the other side of what our node answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydicom import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.apps.common import ElementPath
from pynetdicom.sop_class import (
    CTImageStorage,
    MRImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from dimse.nodes import HERE

PENDING = 0xFF00, 0xFF01


@dataclass
class Answer:
    """What came of a request.

    Attributes:
        status: of the last response.
        completed: sub-operations.
        failed: sub-operations.
        found: identifiers of matches.
        received: instances, of a C-GET.
    """

    status: int = -1
    completed: int = 0
    failed: int = 0
    found: list[Dataset] = field(default_factory=list)
    received: list[Dataset] = field(default_factory=list)


def build_query(keys: Sequence[str]) -> Dataset:
    """A query of `KEYWORD=VALUE` or `KEYWORD`; without a level it is that of its most specific UID, or STUDY."""
    query = Dataset()
    for key in keys:
        query = ElementPath(key if "=" in key else f"{key}=").update(query)
    if "QueryRetrieveLevel" not in query:
        levels = {"IMAGE": "SOPInstanceUID", "SERIES": "SeriesInstanceUID"}
        query.QueryRetrieveLevel = next((level for level, key in levels.items() if query.get(key)), "STUDY")
    return query


def find(port: int, keys: Sequence[str], *, patient_root: bool = False) -> Answer:
    """A C-FIND."""
    models = StudyRootQueryRetrieveInformationModelFind, PatientRootQueryRetrieveInformationModelFind
    model = models[patient_root]
    assoc = _associate(port, [build_context(model)])
    try:
        return _follow(assoc.send_c_find(build_query(keys), model))
    finally:
        assoc.release()


def get(port: int, keys: Sequence[str], *, ae_title: str = "TESTER") -> Answer:
    """A C-GET of MR and CT images."""
    received: list[Dataset] = []

    def store(event: evt.Event) -> int:
        instance = event.dataset
        instance.file_meta = event.file_meta
        received.append(instance)
        return 0x0000

    kinds = (MRImageStorage, CTImageStorage)
    model = StudyRootQueryRetrieveInformationModelGet
    options = {
        "ext_neg": [build_role(kind, scp_role=True) for kind in kinds],
        "evt_handlers": [(evt.EVT_C_STORE, store)],
    }
    assoc = _associate(port, [build_context(kind) for kind in (model, *kinds)], ae_title=ae_title, **options)
    try:
        answer = _follow(assoc.send_c_get(build_query(keys), model))
    finally:
        assoc.release()
    answer.received = received
    return answer


def move(port: int, keys: Sequence[str], destination: str, *, ae_title: str = "TESTER") -> Answer:
    """A C-MOVE."""
    model = StudyRootQueryRetrieveInformationModelMove
    assoc = _associate(port, [build_context(model)], ae_title=ae_title)
    try:
        return _follow(assoc.send_c_move(build_query(keys), destination, model))
    finally:
        assoc.release()


def _associate(port: int, contexts: list, *, ae_title: str = "TESTER", **options):
    assoc = AE(ae_title).associate(HERE, port, contexts=contexts, ae_title="IOPFL", **options)
    assert assoc.is_established
    return assoc


def _follow(responses) -> Answer:
    answer = Answer()
    for status, identifier in responses:
        answer.status = status.Status
        answer.completed = status.get("NumberOfCompletedSuboperations") or answer.completed
        answer.failed = status.get("NumberOfFailedSuboperations") or answer.failed
        if answer.status in PENDING and identifier is not None:
            answer.found.append(identifier)
    return answer
