"""What we ask of other nodes: of our own SCP, of plain peers, and of those that refuse."""

from __future__ import annotations

import json
import re
import socket
import threading

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import CTImageStorage, MRImageStorage, StudyRootQueryRetrieveInformationModelGet

from dicomio.phantoms import build_photograph, write
from dimse.nodes import (
    HERE,
    make_certificates,
    make_slices,
    quick_timeouts,
    read_all,
    running_scp,
    send_plainly,
    storage_peer,
)
from iopfl.base.errors import AssociationError, ConfigError, SeriesError
from iopfl.cli import main
from iopfl.dimse.peers import Peer
from iopfl.dimse.query import QueryRetrieve
from iopfl.dimse.scu import Caller, build_query, echo, find, get, list_instances, move, send
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


def test_a_peer_answers_or_it_is_said_why_not(node):
    node, *_ = node
    assert 0 < echo(Caller(node.peer)) < 10
    for peer, words in (
        (Peer("OTHER", HERE, node.port), "OTHER at 127.0.0.1:.*rejected for good: called ae title not recognised"),
        (Peer("IOPFL", HERE, free_port()), r"no connection \(Connection refused\)"),
        (Peer("IOPFL", "no.such.host.invalid", 104), "no such host"),
    ):
        with pytest.raises(AssociationError, match=words):
            echo(Caller(peer))


def test_a_peer_that_says_nothing_is_not_waited_for(tmp_path):
    with socket.socket() as mute:
        mute.bind((HERE, 0))
        mute.listen()
        with pytest.raises(AssociationError, match=r"no answer to the request for association within 0\.5 s|aborted"):
            echo(Caller(Peer("MUTE", HERE, mute.getsockname()[1]), timeouts=quick_timeouts(0.5)))


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
    assert len(list(find(Caller(node.peer), build_query(keys)))) == found


def test_a_match_has_what_was_asked_for_and_counts(node):
    node, _, first, _ = node
    keys = ["PatientName", "Modality=MR", "NumberOfSeriesRelatedInstances", "SeriesInstanceUID", "AcquisitionNumber"]
    (answer,) = find(Caller(node.peer), build_query(["QueryRetrieveLevel=SERIES", *keys]))
    assert str(answer.PatientName) == "Müller^Jörg"
    assert answer.SeriesInstanceUID == first[0].SeriesInstanceUID
    assert answer.NumberOfSeriesRelatedInstances == 3
    assert answer.AcquisitionNumber is None
    assert answer.RetrieveAETitle == "IOPFL"
    assert "PatientID" not in answer
    query = build_query(["ModalitiesInStudy", "NumberOfStudyRelatedSeries", "PatientID=P-2"])
    (answer,) = find(Caller(node.peer), query)
    assert (answer.ModalitiesInStudy, answer.NumberOfStudyRelatedSeries) == ("CT", 1)


def test_patients_are_found_in_the_patient_root_only(node):
    node, *_ = node
    query = build_query(["QueryRetrieveLevel=PATIENT", "PatientID"])
    found = {str(ds.PatientID) for ds in find(Caller(node.peer), query, patient_root=True)}
    assert found == {"P-1", "P-2"}
    with pytest.raises(AssociationError, match="refused the query: status 0xA900"):
        list(find(Caller(node.peer), query))
    with pytest.raises(AssociationError, match="0xA900"):
        list(find(Caller(node.peer), build_query(["QueryRetrieveLevel=NOTHING"])))


def test_a_series_is_brought_as_it_is(node, tmp_path):
    node, _, first, _ = node
    result = get(Caller(node.peer), build_query([f"SeriesInstanceUID={first[0].SeriesInstanceUID}"]), tmp_path / "got")
    assert (result.completed, result.failed) == (3, 0)
    assert read_all(tmp_path / "got") == {ds.SOPInstanceUID: ds for ds in first}
    nothing = get(Caller(node.peer), build_query(["SeriesInstanceUID=1.2.3"]), tmp_path / "none")
    assert (nothing.completed, nothing.failed) == (0, 0)
    with pytest.raises(AssociationError, match="refused to send"):
        get(Caller(node.peer), build_query(["QueryRetrieveLevel=SERIES"]), tmp_path / "all")


def test_a_study_is_moved_to_whom_the_rules_know(node):
    node, port, _, second = node
    query = build_query([f"StudyInstanceUID={second[0].StudyInstanceUID}"])
    with storage_peer(port=port) as pacs:
        assert move(Caller(node.peer), query, "PACS").completed == 2
        assert {ds.SOPInstanceUID for ds in pacs.received} == {ds.SOPInstanceUID for ds in second}
        pacs.status = 0xA700
        with pytest.raises(AssociationError, match="refused to move"):
            move(Caller(node.peer), query, "PACS")
        with pytest.raises(AssociationError, match="refused to move: status 0xA900"):
            move(Caller(node.peer), build_query(["QueryRetrieveLevel=SERIES"]), "PACS")
    with pytest.raises(AssociationError, match="0xA801"):
        move(Caller(node.peer), query, "STRANGER")
    with pytest.raises(AssociationError, match="0xA801"):
        move(Caller(node.peer), query, "PACS")


def test_files_are_sent_byte_by_byte(tmp_path):
    datasets = make_slices(3)
    write(datasets, tmp_path / "series")
    (tmp_path / "series" / "readme.txt").write_text("no DICOM")
    with running_scp(tmp_path / "node") as node:
        sent = list(send(Caller(node.peer), list_instances([tmp_path / "series"])))
        assert [(item.status, item.reason, item.is_transcoded) for item in sent] == [(0, "", False)] * 3
        sources = {ds.SOPInstanceUID: path for path in (tmp_path / "series").glob("IM*") for ds in [dcmread(path)]}
        for path in node.stored():
            source = sources[path.stem].read_bytes()
            data = path.read_bytes()
            assert data[data.index(b"\x08\x00\x05\x00CS") :] == source[source.index(b"\x08\x00\x05\x00CS") :]


def test_a_compressed_file_goes_as_it_is_or_decompressed(tmp_path):
    (ds,) = make_slices(1)
    original = ds.pixel_array
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    with running_scp(tmp_path / "node") as node:
        (sent,) = send(Caller(node.peer), list_instances([tmp_path / "rle.dcm"]))
        assert (sent.status, sent.is_transcoded) == (0, False)
        assert dcmread(node.stored()[0]).file_meta.TransferSyntaxUID == RLELossless
    with storage_peer(contexts=[build_context(MRImageStorage, ExplicitVRLittleEndian)]) as plain:
        (sent,) = send(Caller(plain.peer), list_instances([tmp_path / "rle.dcm"]))
        assert (sent.is_taken, sent.is_transcoded) == (True, True)
        (received,) = plain.received
        assert received.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert received.SOPInstanceUID == ds.SOPInstanceUID
        assert (received.pixel_array == original).all()


def test_what_a_peer_does_not_take_is_named_and_the_rest_sent(tmp_path):
    (slice_,) = make_slices(1)
    photograph = build_photograph(np.zeros((8, 8, 3), np.uint8))
    (broken,) = make_slices(1, series="broken")
    broken.file_meta.TransferSyntaxUID = JPEG2000Lossless
    broken.PixelData = encapsulate([b"no codestream"])
    broken["PixelData"].VR = "OB"
    broken["PixelData"].is_undefined_length = True
    write([slice_, photograph, broken], tmp_path / "mixed")
    with storage_peer(contexts=[build_context(MRImageStorage, ExplicitVRLittleEndian)]) as peer:
        sent = {item.sop_instance_uid: item for item in send(Caller(peer.peer), list_instances([tmp_path / "mixed"]))}
        assert sent[slice_.SOPInstanceUID].is_taken
        assert "takes no Ophthalmic Photography 8 Bit" in sent[photograph.SOPInstanceUID].reason
        assert "cannot be decoded here" in sent[broken.SOPInstanceUID].reason
        peer.status = 0xA700
        (refused, *_) = send(Caller(peer.peer), list_instances([tmp_path / "mixed"]))
        assert not refused.is_taken or refused.status is None
    with (
        storage_peer(contexts=[build_context(CTImageStorage)]) as peer,
        pytest.raises(AssociationError, match="none of the services or transfer syntaxes"),
    ):
        list(send(Caller(peer.peer), list_instances([tmp_path / "mixed"])))


def test_warnings_are_taken_and_failures_are_not(tmp_path):
    write(make_slices(1), tmp_path / "series")
    instances = list_instances([tmp_path / "series"])
    with storage_peer() as peer:
        for status, is_taken, words in (
            (0xB000, True, "0xB000, Coercion"),
            (0xA700, False, "0xA700, Refused"),
            (0x0, True, ""),
        ):
            peer.status = status
            (sent,) = send(Caller(peer.peer), instances)
            assert (sent.status, sent.is_taken) == (status, is_taken)
            assert words in sent.reason


def test_a_lost_association_is_said(tmp_path):
    write(make_slices(3), tmp_path / "series")
    instances = list_instances([tmp_path / "series"])
    with running_scp(tmp_path / "node") as node:
        sending = send(Caller(node.peer, timeouts=quick_timeouts(3)), instances)
        next(sending)
        for assoc in node.scp._server.active_associations:
            assoc.abort()
        with pytest.raises(AssociationError, match="association was lost: send the rest again"):
            list(sending)
    assert not [thread for thread in threading.enumerate() if "reactor" in thread.name]


def test_what_is_retrieved_is_recorded(tmp_path):
    series, other, port, lines = make_slices(2), make_slices(1, series="other"), free_port(), []
    peers = {"PACS": Peer("PACS", HERE, port)}
    services = lambda inbox: [QueryRetrieve(inbox, peers.get, lambda *line: lines.append(line)).service]  # noqa: E731
    with running_scp(tmp_path / "node", services=services) as node, storage_peer(port=port) as pacs:
        send_plainly(node.port, [*series, *other])
        get(Caller(node.peer, "TESTER"), build_query([f"SeriesInstanceUID={series[0].SeriesInstanceUID}"]), tmp_path)
        move(Caller(node.peer), build_query([f"SeriesInstanceUID={other[0].SeriesInstanceUID}"]), "PACS")
    about = {"series": series[0].SeriesInstanceUID, "instances": "2", "to": f"TESTER at {HERE}"}
    assert lines[0] == ("TESTER", "dicom get", about)
    about = {"series": other[0].SeriesInstanceUID, "instances": "1", "to": str(pacs.peer)}
    assert lines[1:] == [("IOPFL", "dicom move", about)]


def test_an_association_lost_amid_a_retrieval_is_said_though_some_came_and_some_failed(tmp_path):
    whole, nameless = make_slices(2)
    del nameless.SOPClassUID

    def give(event):
        yield 3
        yield 0xFF00, whole
        yield 0xFF00, nameless
        event.assoc.abort()

    ae = AE("PACS")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    ae.add_supported_context(MRImageStorage, scu_role=True, scp_role=True)
    server = ae.start_server((HERE, 0), block=False, evt_handlers=[(evt.EVT_C_GET, give)])
    try:
        caller = Caller(Peer("PACS", HERE, server.server_address[1]))
        with pytest.raises(AssociationError, match="no answer to the request to send"):
            get(caller, build_query(["SeriesInstanceUID=1.2"]), tmp_path)
    finally:
        server.shutdown()


def test_what_is_no_dicom_is_not_sent(tmp_path):
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(SeriesError, match=r"text.dcm: expected a DICOM instance"):
        list_instances([tmp_path / "text.dcm"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SeriesError, match="found none"):
        list_instances([tmp_path / "empty"])


def test_queries_are_built_of_dcmtks_keys():
    query = build_query(["0010,0020=7", "PatientName", "SOPInstanceUID=1.2.3", "StudyDate=20200101-"])
    assert (query.PatientID, query.PatientName, query.QueryRetrieveLevel) == ("7", "", "IMAGE")
    assert build_query([]).QueryRetrieveLevel == "STUDY"
    assert build_query(["SeriesInstanceUID=1.2"]).QueryRetrieveLevel == "SERIES"
    for wrong in ("NoSuchKeyword=1", "0010", "0010,00x0=1", ""):
        with pytest.raises(ConfigError, match="-k: expected an element"):
            build_query([wrong])


@pytest.fixture
def run(capsys):
    """Run `iopfl dicom ...`: status, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        try:
            status = main(["dicom", *map(str, words)])
        except SystemExit as error:
            status = int(error.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_commands_print_what_came_of_it(node, run, tmp_path):
    node, port, first, _ = node
    there = (HERE, node.port, "-aec", "IOPFL", "-aet", "TESTER")
    status, out, _ = run("echo", *there)
    assert (status, out.startswith("IOPFL at 127.0.0.1")) == (0, True)
    assert json.loads(run("echo", *there, "--json")[1])["seconds"] > 0
    status, out, _ = run("find", *there, "-k", "QueryRetrieveLevel=SERIES", "-k", "Modality", "-k", "PatientName=M*")
    assert status == 0
    assert out.splitlines()[0].split() == ["Modality", "PatientName"]
    assert [line.split() for line in sorted(out.splitlines()[1:])] == [["CT", "Meier^Anna"], ["MR", "Müller^Jörg"]]
    found = json.loads(run("find", *there, "-P", "-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientID", "--json")[1])
    assert {item["00100020"]["Value"][0] for item in found} == {"P-1", "P-2"}
    series = f"SeriesInstanceUID={first[0].SeriesInstanceUID}"
    status, out, _ = run("get", *there, "-k", series, "-od", tmp_path / "got")
    assert (status, out) == (0, f"3 instances in {tmp_path / 'got'}, 0 failed\n")
    with storage_peer(port=port) as pacs:
        assert json.loads(run("move", *there, "-aem", "PACS", "-k", series, "--json")[1])["completed"] == 3
        assert len(pacs.received) == 3
        status, out, _ = run("send", HERE, port, "-aec", "PACS", tmp_path / "got")
        assert (status, out) == (0, "3 of 3 instances taken\n")
        pacs.status = 0xA900
        status, out, _ = run("send", HERE, port, "-aec", "PACS", tmp_path / "got", "--json")
        assert (status, [json.loads(line)["status"] for line in out.splitlines()]) == (1, [0xA900] * 3)


def test_the_commands_refuse_in_one_line(node, run, tmp_path):
    node, *_ = node
    folder = make_certificates(tmp_path / "certificates")
    for words, text in (
        (("echo", HERE, node.port, "-aec", "OTHER"), "called ae title not recognised"),
        (("echo", HERE, node.port, "-aec", "A" * 17), "expected an AE title"),
        (("echo", HERE, 0), "expected a host and a port"),
        (("echo", HERE, node.port, "--tls-cert", folder / "node.pem"), "TLS needs --tls-ca"),
        (("echo", HERE, node.port, "--tls-ca", folder / "ca.pem", "-aec", "IOPFL", "-ta", "2"), "TLS|aborted"),
        (("echo", HERE, node.port, "-td", "0"), "timeouts: expected seconds"),
        (("find", HERE, node.port, "-aec", "IOPFL", "-k", "Nonsense=1"), "-k: expected an element"),
        (("send", HERE, node.port, "-aec", "IOPFL", tmp_path / "none"), "none|No such file"),
        (("move", HERE, node.port, "-aec", "IOPFL", "-aem", "NOBODY", "-k", "SeriesInstanceUID=1.2"), "0xA801"),
    ):
        status, out, err = run(*words)
        assert (status, out) == (2, ""), words
        assert len(err.strip().splitlines()) == 1 and err.startswith("iopfl: ")
        assert re.search(text, err), err
