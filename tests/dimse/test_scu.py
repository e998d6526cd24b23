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
from pynetdicom import build_context
from pynetdicom.sop_class import CTImageStorage, MRImageStorage

from dicomio.phantoms import build_photograph, write
from dimse.nodes import (
    HERE,
    make_certificates,
    make_slices,
    quick_timeouts,
    running_scp,
    storage_peer,
)
from iopfl.base.errors import AssociationError, SeriesError
from iopfl.cli import main
from iopfl.dimse.peers import Peer
from iopfl.dimse.scu import Caller, echo, list_instances, send
from orthanc import free_port


@pytest.fixture
def node(tmp_path):
    """Our SCP."""
    with running_scp(tmp_path / "node") as node:
        yield node


def test_a_peer_answers_or_it_is_said_why_not(node):
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


def test_what_is_no_dicom_is_not_sent(tmp_path):
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(SeriesError, match=r"text.dcm: expected a DICOM instance"):
        list_instances([tmp_path / "text.dcm"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SeriesError, match="found none"):
        list_instances([tmp_path / "empty"])


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
    there = (HERE, node.port, "-aec", "IOPFL", "-aet", "TESTER")
    status, out, _ = run("echo", *there)
    assert (status, out.startswith("IOPFL at 127.0.0.1")) == (0, True)
    assert json.loads(run("echo", *there, "--json")[1])["seconds"] > 0
    write(make_slices(3), tmp_path / "series")
    with storage_peer() as pacs:
        port = pacs.port
        status, out, _ = run("send", HERE, port, "-aec", "PACS", tmp_path / "series")
        assert (status, out) == (0, "3 of 3 instances taken\n")
        pacs.status = 0xA900
        status, out, _ = run("send", HERE, port, "-aec", "PACS", tmp_path / "series", "--json")
        assert (status, [json.loads(line)["status"] for line in out.splitlines()]) == (1, [0xA900] * 3)


def test_the_commands_refuse_in_one_line(node, run, tmp_path):
    folder = make_certificates(tmp_path / "certificates")
    for words, text in (
        (("echo", HERE, node.port, "-aec", "OTHER"), "called ae title not recognised"),
        (("echo", HERE, node.port, "-aec", "A" * 17), "expected an AE title"),
        (("echo", HERE, 0), "expected a host and a port"),
        (("echo", HERE, node.port, "--tls-cert", folder / "node.pem"), "TLS needs --tls-ca"),
        (("echo", HERE, node.port, "--tls-ca", folder / "ca.pem", "-aec", "IOPFL", "-ta", "2"), "TLS|aborted"),
        (("echo", HERE, node.port, "-td", "0"), "timeouts: expected seconds"),
        (("send", HERE, node.port, "-aec", "IOPFL", tmp_path / "none"), "none|No such file"),
    ):
        status, out, err = run(*words)
        assert (status, out) == (2, ""), words
        assert len(err.strip().splitlines()) == 1 and err.startswith("iopfl: ")
        assert re.search(text, err), err
