"""What our node answers to queries and retrievals of what it received; asked by pynetdicom's plain client."""

from __future__ import annotations

import pytest

from dimse.nodes import HERE, make_slices, running_scp, send_plainly, storage_peer
from dimse.retrieving import find, get, move
from iopfl.dimse.peers import Peer
from iopfl.dimse.query import QueryRetrieve
from orthanc import free_port


@pytest.fixture
def node(tmp_path):
    """Our SCP with two series, and a destination PACS whose port is that of `storage_peer(port=...)`."""
    port = free_port()
    peers = {"PACS": Peer("PACS", HERE, port)}
    with running_scp(tmp_path / "node", services=lambda inbox: [QueryRetrieve(inbox, peers.get).service]) as node:
        first, second = make_slices(3), make_slices(2, series="other")
        for ds in second:
            ds.Modality, ds.PatientName, ds.PatientID = "CT", "Meier^Anna", "P-2"
        send_plainly(node.port, [*first, *second])
        yield node, port, first, second


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (["QueryRetrieveLevel=STUDY"], 2),
        (["QueryRetrieveLevel=SERIES", "Modality=MR"], 1),
        (["QueryRetrieveLevel=SERIES", "Modality=M*"], 1),
        (["QueryRetrieveLevel=SERIES", "SeriesDescription=phan?om"], 2),
        (["QueryRetrieveLevel=STUDY", "PatientName=meier*"], 1),
        (["QueryRetrieveLevel=STUDY", "PatientID=P-1"], 1),
        (["QueryRetrieveLevel=STUDY", "PatientID=P"], 0),
        (["QueryRetrieveLevel=STUDY", "StudyDate=20200101-20200103"], 2),
        (["QueryRetrieveLevel=STUDY", "StudyDate=20200103-"], 0),
        (["QueryRetrieveLevel=STUDY", "StudyDate=-20200102"], 2),
        (["QueryRetrieveLevel=STUDY", "PatientName=[M]eier*"], 0),
        (["QueryRetrieveLevel=IMAGE", "InstanceNumber=2"], 2),
        (["QueryRetrieveLevel=IMAGE"], 5),
    ],
)
def test_what_is_here_is_found(node, keys, found):
    node, *_ = node
    answer = find(node.port, keys)
    assert (len(answer.found), answer.status) == (found, 0)


def test_a_match_has_what_was_asked_for_and_counts(node):
    node, _, first, _ = node
    keys = ["PatientName", "Modality=MR", "NumberOfSeriesRelatedInstances", "SeriesInstanceUID", "AcquisitionNumber"]
    (answer,) = find(node.port, ["QueryRetrieveLevel=SERIES", *keys]).found
    assert str(answer.PatientName) == "Müller^Jörg"
    assert answer.SeriesInstanceUID == first[0].SeriesInstanceUID
    assert answer.NumberOfSeriesRelatedInstances == 3
    assert answer.AcquisitionNumber is None
    assert answer.RetrieveAETitle == "IOPFL"
    assert "PatientID" not in answer
    (answer,) = find(node.port, ["ModalitiesInStudy", "NumberOfStudyRelatedSeries", "PatientID=P-2"]).found
    assert (answer.ModalitiesInStudy, answer.NumberOfStudyRelatedSeries) == ("CT", 1)


def test_patients_are_found_in_the_patient_root_only(node):
    node, *_ = node
    keys = ["QueryRetrieveLevel=PATIENT", "PatientID"]
    assert {str(ds.PatientID) for ds in find(node.port, keys, patient_root=True).found} == {"P-1", "P-2"}
    assert find(node.port, keys).status == 0xA900
    assert find(node.port, ["QueryRetrieveLevel=NOTHING"]).status == 0xA900


def test_a_series_is_brought_as_it_is(node):
    node, _, first, _ = node
    result = get(node.port, [f"SeriesInstanceUID={first[0].SeriesInstanceUID}"])
    assert (result.status, result.completed, result.failed) == (0, 3, 0)
    assert {ds.SOPInstanceUID: ds for ds in result.received} == {ds.SOPInstanceUID: ds for ds in first}
    nothing = get(node.port, ["SeriesInstanceUID=1.2.3"])
    assert (nothing.status, nothing.completed, nothing.failed) == (0, 0, 0)
    assert get(node.port, ["QueryRetrieveLevel=SERIES"]).status == 0xA900


def test_a_study_is_moved_to_whom_the_rules_know(node):
    node, port, _, second = node
    keys = [f"StudyInstanceUID={second[0].StudyInstanceUID}"]
    with storage_peer(port=port) as pacs:
        assert move(node.port, keys, "PACS").completed == 2
        assert {ds.SOPInstanceUID for ds in pacs.received} == {ds.SOPInstanceUID for ds in second}
        pacs.status = 0xA700
        assert (refused := move(node.port, keys, "PACS")).status != 0 and refused.failed == 2
        assert move(node.port, ["QueryRetrieveLevel=SERIES"], "PACS").status == 0xA900
    assert move(node.port, keys, "STRANGER").status == 0xA801
    assert move(node.port, keys, "PACS").status == 0xA801


def test_what_is_retrieved_is_recorded(tmp_path):
    series, other, port, lines = make_slices(2), make_slices(1, series="other"), free_port(), []
    peers = {"PACS": Peer("PACS", HERE, port)}
    services = lambda inbox: [QueryRetrieve(inbox, peers.get, lambda *line: lines.append(line)).service]  # noqa: E731
    with running_scp(tmp_path / "node", services=services) as node, storage_peer(port=port) as pacs:
        send_plainly(node.port, [*series, *other])
        get(node.port, [f"SeriesInstanceUID={series[0].SeriesInstanceUID}"])
        move(node.port, [f"SeriesInstanceUID={other[0].SeriesInstanceUID}"], "PACS", ae_title="IOPFL")
    about = {"series": series[0].SeriesInstanceUID, "instances": "2", "to": f"TESTER at {HERE}"}
    assert lines[0] == ("TESTER", "dicom get", about)
    about = {"series": other[0].SeriesInstanceUID, "instances": "1", "to": str(pacs.peer)}
    assert lines[1:] == [("IOPFL", "dicom move", about)]
