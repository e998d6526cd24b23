"""The storage SCP: what it takes as it came, and what it refuses, with the right status and a line in the log."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from copy import deepcopy
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.pixels import get_decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import build_context
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import CTImageStorage, MRImageStorage, Verification

from dimse.nodes import (
    HERE,
    eventually,
    make_certificates,
    make_slices,
    plain_association,
    quick_timeouts,
    running_scp,
    send_plainly,
)
from dimse.wire import association_request
from iopfl.base.errors import AssociationError, ConfigError
from iopfl.dimse import acceptor, lobby, messages
from iopfl.dimse.peers import TLS, Peer
from iopfl.dimse.scp import STORED, TRANSFER_SYNTAXES, SCPSettings, StorageSCP
from iopfl.dimse.scu import Caller, echo
from label_server import start_process, stop_process, wait_until

REJECTED_FOR_GOOD, REJECTED_FOR_NOW = 1, 2


@pytest.fixture
def lines(caplog):
    """What is said in the log, without who said it."""
    caplog.set_level(logging.INFO, "iopfl")

    def text() -> str:
        return "\n".join(record.getMessage() for record in caplog.records)

    return text


def altered(ds: Dataset, **elements: object) -> Dataset:
    ds = deepcopy(ds)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_an_instance_is_kept_as_it_came(tmp_path, syntax):
    datasets = make_slices(3)
    for ds in datasets:
        ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(tmp_path / "sent.dcm", implicit_vr=syntax.is_implicit_VR, enforce_file_format=True)
    with running_scp(tmp_path / "node") as node:
        assert send_plainly(node.port, [dcmread(tmp_path / "sent.dcm"), *datasets[:2]]) == [0, 0, 0]
        paths = node.stored()
        assert sorted(path.stem for path in paths) == sorted(ds.SOPInstanceUID for ds in datasets)
        kept = dcmread(next(path for path in paths if path.stem == datasets[2].SOPInstanceUID))
        assert kept == datasets[2]
        assert kept.file_meta.TransferSyntaxUID == syntax
        assert kept.file_meta.MediaStorageSOPInstanceUID == kept.SOPInstanceUID
        assert kept.file_meta.MediaStorageSOPClassUID == kept.SOPClassUID
    assert {path.parent.name for path in paths} == {datasets[0].SeriesInstanceUID}
    assert paths[0].stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("syntax", TRANSFER_SYNTAXES, ids=lambda syntax: syntax.name)
def test_what_is_accepted_can_be_decoded(syntax):
    assert not syntax.is_compressed or get_decoder(syntax).is_available


def test_every_storage_class_of_the_standard_is_taken_and_echo_answered(tmp_path):
    with running_scp(tmp_path) as node:
        for start in range(0, len(STORED), 100):
            contexts = [build_context(sop_class) for sop_class in STORED[start : start + 100]]
            with plain_association(node.port, [build_context(Verification), *contexts]) as assoc:
                assert len(assoc.accepted_contexts) == len(contexts) + 1
                assert assoc.send_c_echo().Status == 0


def test_an_unknown_sop_class_and_a_syntax_that_cannot_be_decoded_are_refused_by_name(tmp_path, lines):
    contexts = [
        build_context("1.2.3.4.5"),
        build_context(MRImageStorage, uid.MPEG2MPML),
        build_context(CTImageStorage, [uid.MPEG2MPML, ExplicitVRLittleEndian]),
    ]
    with running_scp(tmp_path) as node, plain_association(node.port, contexts) as assoc:
        assert [context.abstract_syntax for context in assoc.accepted_contexts] == [CTImageStorage]
        assert [context.result for context in assoc.rejected_contexts] == [3, 4]
        text = eventually(lambda: lines() if "decoded" in lines() else "")
    assert "SCANNER at 127.0.0.1 asked for 1.2.3.4.5: refused, this SOP class is not served" in text
    assert "asked for MR Image Storage: refused, none of its transfer syntaxes can be decoded" in text


def test_nothing_is_taken_deflated(tmp_path):
    contexts = [
        build_context(sop_class, DeflatedExplicitVRLittleEndian) for sop_class in (Verification, MRImageStorage)
    ]
    with running_scp(tmp_path) as node, plain_association(node.port, contexts) as assoc:
        assert not assoc.accepted_contexts


@pytest.mark.parametrize(
    ("titles", "diagnostic", "words"),
    [
        ({"aec": "OTHER"}, 7, "Called AE title not recognized (it called OTHER)"),
        ({"aet": "STRANGER"}, 3, "Calling AE title not recognized"),
    ],
)
def test_an_association_with_the_wrong_titles_is_rejected_for_good(tmp_path, lines, titles, diagnostic, words):
    with running_scp(tmp_path, allow=("SCANNER", "PACS")) as node:
        with plain_association(node.port, **titles) as assoc:
            answer = assoc.acceptor.primitive
            assert (assoc.is_rejected, answer.result, answer.diagnostic) == (True, REJECTED_FOR_GOOD, diagnostic)
        assert words in eventually(lambda: lines() if "rejected" in lines() else "")
        with plain_association(node.port, aet="PACS") as assoc:
            assert assoc.is_established


def test_one_association_too_many_is_rejected_for_now(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(acceptor, "IDLE_SECONDS", 100.0)
    monkeypatch.setattr(lobby, "PATIENCE_SECONDS", 0.1)
    with (
        running_scp(tmp_path, max_associations=2) as node,
        plain_association(node.port) as first,
        plain_association(node.port),
    ):
        with plain_association(node.port) as third:
            answer = third.acceptor.primitive
            assert (answer.result, answer.result_source, answer.diagnostic) == (REJECTED_FOR_NOW, 3, 2)
        assert "Local limit exceeded" in eventually(lambda: lines() if "rejected" in lines() else "")
        first.release()
        eventually(lambda: len(node.scp._server.active_associations) < 2, "the first to be gone")
        with plain_association(node.port) as again:
            assert again.is_established


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"SeriesInstanceUID": ""}, 0xC000, "expected a UID as Series Instance UID"),
        ({"StudyInstanceUID": "../../etc"}, 0xC000, "expected a UID as Study Instance UID"),
        ({"SeriesInstanceUID": "1.2/../3"}, 0xC000, "expected a UID as Series Instance UID"),
        ({"SeriesInstanceUID": "1.2..3"}, 0xC000, "expected a UID as Series Instance UID"),
        ({"SeriesInstanceUID": "1." * 40 + "1"}, 0xC000, "expected a UID as Series Instance UID"),
    ],
)
def test_an_instance_without_usable_uids_is_not_understood(tmp_path, lines, changes, status, words):
    (ds,) = make_slices(1)
    with running_scp(tmp_path / "node") as node:
        assert send_plainly(node.port, [altered(ds, **changes)]) == [status]
        assert node.stored() == []
    assert words in lines()
    assert f"instance {ds.SOPInstanceUID} from SCANNER at 127.0.0.1 refused, 0x{status:04X}" in lines()
    assert not list((tmp_path / "node" / "incoming").iterdir())


def test_a_data_set_that_is_not_what_the_request_says_does_not_match(tmp_path, lines):
    first, second = make_slices(2)
    with running_scp(tmp_path) as node:
        with plain_association(node.port) as assoc:
            statuses = [_store_as(assoc, first, instance=second.SOPInstanceUID).Status]
            statuses.append(
                _store_as(assoc, altered(first, SOPClassUID=CTImageStorage), sop_class=MRImageStorage).Status
            )
            statuses.append(_store_as(assoc, first, sop_class=CTImageStorage).Status)
        assert statuses == [0xA900, 0xA900, 0x0122]
        assert node.stored() == []
    assert "are not those of the request" in lines()


def _store_as(assoc, ds, *, sop_class=None, instance=None):
    """Send a data set in a request that says something else of it."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID = sop_class or ds.SOPClassUID
    request.AffectedSOPInstanceUID = instance or ds.SOPInstanceUID
    request.DataSet = BytesIO(encode(ds, False, True))
    context = next(cx for cx in assoc.accepted_contexts if cx.abstract_syntax == MRImageStorage)
    assoc._reactor_checkpoint.clear()
    time.sleep(0.05)
    assoc.dimse.send_msg(request, context.context_id)
    _, answer = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    return answer


def test_a_series_of_two_studies_is_refused(tmp_path, lines):
    first, second = make_slices(2)
    with running_scp(tmp_path) as node:
        assert send_plainly(node.port, [first, altered(second, StudyInstanceUID=generate_uid())]) == [0, 0xC000]
        assert len(node.stored()) == 1
    assert "belongs to another study already" in lines()


def test_what_does_not_fit_into_the_inbox_is_out_of_resources(tmp_path, lines):
    datasets = make_slices(3, size=64)
    with running_scp(tmp_path, max_bytes=20_000) as node:
        assert send_plainly(node.port, datasets) == [0, 0, 0xA700]
        assert len(node.stored()) == 2
    assert "the inbox holds" in lines()


_SMALL_DISK = """
import resource, signal, sys, time
from pathlib import Path
from iopfl.dimse.inbox import Inbox
from iopfl.dimse.queue import Queue
from iopfl.dimse.scp import SCPSettings, StorageSCP
folder = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
scp = StorageSCP(SCPSettings(port=0), Inbox(folder, Queue(folder / "queue")))
scp.start()
print(scp.port, flush=True)
time.sleep(600)
"""


def test_a_disk_that_takes_no_more_is_out_of_resources_and_leaves_nothing_half(tmp_path):
    small, large = make_slices(1, size=16), make_slices(1, size=128, series="large")
    (tmp_path / "node.py").write_text(_SMALL_DISK)
    log = tmp_path / "log"
    process = start_process([sys.executable, tmp_path / "node.py", tmp_path / "node"], log)
    try:
        port = int(wait_until(lambda: log.read_text().strip(), 60, what="the port"))
        assert send_plainly(port, [*small, *large, *make_slices(1, series="third")]) == [0, 0xA700, 0]
    finally:
        process.send_signal(signal.SIGKILL)
        stop_process(process)
    stored = sorted(path.name for path in (tmp_path / "node").rglob("*") if path.is_file() and path.suffix != ".json")
    assert len(stored) == 2 and all(name.endswith(".dcm") for name in stored)


def test_the_same_instance_twice_is_one_and_a_changed_one_takes_its_place(tmp_path):
    datasets = make_slices(2)
    changed = altered(datasets[0], PatientName="Corrected^Name")
    with running_scp(tmp_path) as node:
        assert send_plainly(node.port, [*datasets, *datasets, changed]) == [0] * 5
        assert len(node.stored()) == 2
        assert sorted(str(dcmread(path).PatientName) for path in node.stored()) == ["Corrected^Name", "Müller^Jörg"]


def test_nothing_of_the_patient_is_in_the_log(tmp_path, lines):
    (ds,) = make_slices(1)
    with running_scp(tmp_path) as node:
        send_plainly(node.port, [ds, altered(ds, SeriesInstanceUID="Müller"), altered(ds, PatientName="x" * 500)])
    for value in ("ller", "P-1", "19600203", "A1"):
        assert value not in lines()


def test_silence_ends_an_association_and_a_connection(tmp_path, lines):
    with running_scp(tmp_path, timeouts=quick_timeouts(0.5)) as node:
        with plain_association(node.port) as assoc:
            eventually(lambda: not assoc.dul.is_alive(), "the abort")
        with socket.create_connection((HERE, node.port)) as silent, socket.create_connection((HERE, node.port)) as half:
            half.sendall(b"\x01\x00\x00\x00\x10\x00abc")  # the beginning of a request for association
            for connection in (silent, half):
                connection.settimeout(10)
                assert connection.recv(100) in (b"", b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x00")
        eventually(lambda: not node.scp._server.active_associations, "the threads to end")
        with plain_association(node.port) as assoc:
            assert assoc.is_established
    assert "association with SCANNER at 127.0.0.1 aborted after 0.5 s of silence" in lines()
    assert "connection without an association within 0.5 s: closed" in lines()
    assert "did not send the rest of a PDU within 0.5 s: closed" in lines()


def test_an_abort_of_the_peers_is_said_to_be_one(tmp_path, lines):
    with running_scp(tmp_path) as node:
        with plain_association(node.port) as assoc:
            assoc.abort()
        assert "aborted by the peer" in eventually(lambda: lines() if "aborted" in lines() else "")


def test_a_peer_that_sends_a_byte_now_and_then_is_not_waited_for(tmp_path):
    with (
        running_scp(tmp_path, timeouts=quick_timeouts(0.5)) as node,
        socket.create_connection((HERE, node.port)) as slow,
    ):
        slow.sendall(b"\x01\x00\x00\x00\x40\x00")
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() < started + 20:
                slow.sendall(b"\x00")
                time.sleep(0.1)


def test_a_pdu_that_claims_to_be_huge_is_not_read(tmp_path, lines):
    with running_scp(tmp_path) as node:
        for early in (b"", association_request()):
            with socket.create_connection((HERE, node.port)) as peer:
                peer.settimeout(10)
                peer.sendall(early)
                if early:
                    assert peer.recv(1) == b"\x02"
                peer.sendall(struct.pack(">BBL", 4, 0, 0xFFFFFFFF) + b"x" * 100)
                answer = b""
                with suppress(ConnectionError):
                    while part := peer.recv(65536):
                        answer += part
                assert early or answer in (b"", b"\x07\x00\x00\x00\x00\x04\x00\x00\x02\x00")
    assert "is no DICOM peer: it asks for no association" in lines()
    assert "announces a PDU of 4294967295 bytes" in lines()


def test_a_message_without_end_is_aborted(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(messages, "MAX_INSTANCE", 300_000)
    (small,), (large,) = make_slices(1), make_slices(1, size=512, series="large")
    with running_scp(tmp_path) as node:
        with plain_association(node.port) as assoc:
            assert assoc.send_c_store(small).Status == 0
            assert "Status" not in assoc.send_c_store(large)
        assert len(node.stored()) == 1
    assert "sent an instance of more than 300000 bytes: aborted" in lines()


def test_tls_asks_both_sides_for_a_certificate_of_the_same_authority(tmp_path, lines):
    folder = make_certificates(tmp_path / "certificates")
    ours = TLS(folder / "ca.pem", folder / "node.pem", folder / "node.key")
    stranger = TLS(folder / "ca.pem", folder / "stranger" / "node.pem", folder / "stranger" / "node.key")
    wrong_authority = TLS(folder / "stranger" / "ca.pem", folder / "node.pem", folder / "node.key")
    nameless = TLS(folder / "ca.pem")
    with running_scp(tmp_path / "node", tls=ours, timeouts=quick_timeouts(5)) as node:
        stalled = socket.create_connection((HERE, node.port))  # no handshake; nobody shall wait for it
        assert echo(Caller(Peer("IOPFL", HERE, node.port, ours))) > 0
        assert echo(Caller(Peer("IOPFL", "localhost", node.port, ours))) > 0
        for tls, words in (
            (stranger, "TLS|aborted"),
            (wrong_authority, "TLS"),
            (nameless, "TLS|aborted"),
            (None, "TLS"),
        ):
            with pytest.raises(AssociationError, match=words):
                echo(Caller(Peer("IOPFL", HERE, node.port, tls), timeouts=quick_timeouts(5)))
        with pytest.raises(AssociationError, match="TLS"):
            other_name = TLS(folder / "ca.pem", folder / "node.pem", folder / "node.key", name="other.host")
            echo(Caller(Peer("IOPFL", HERE, node.port, other_name)))
        assert echo(Caller(Peer("IOPFL", HERE, node.port, ours))) > 0
        stalled.close()
    assert "is no DICOM peer" in lines()


def test_a_listener_with_tls_needs_a_certificate_and_files_that_are_there(tmp_path):
    folder = make_certificates(tmp_path)
    with pytest.raises(ConfigError, match="needs a certificate"), running_scp(tmp_path, tls=TLS(folder / "ca.pem")):
        pass
    with pytest.raises(ConfigError, match="there is no"):
        TLS(folder / "no.pem")
    with pytest.raises(ConfigError, match="give both"):
        TLS(folder / "ca.pem", folder / "node.pem")
    (folder / "broken.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="expected PEM"):
        TLS(folder / "broken.pem").client_context()


def test_settings_that_cannot_be_are_refused(tmp_path):
    for wrong in ({"ae_title": "A" * 17}, {"ae_title": " "}, {"allow": ("A\\B",)}):
        with pytest.raises(ConfigError, match="AE title"):
            SCPSettings(**wrong)
    with pytest.raises(ConfigError, match="association"):
        SCPSettings(max_associations=0)
    with running_scp(tmp_path / "a") as node, pytest.raises(ConfigError, match="choose another --port"):
        StorageSCP(SCPSettings(port=node.port), node.inbox)


def test_stopping_leaves_no_thread_and_frees_the_port(tmp_path):
    before = set(threading.enumerate())
    with running_scp(tmp_path) as node, plain_association(node.port) as assoc:
        port = node.port
        assert assoc.is_established
    eventually(lambda: set(threading.enumerate()) <= before, "the threads to end")
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((HERE, port))


def test_associations_leave_no_file_open(tmp_path):
    def count() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    with running_scp(tmp_path) as node:
        caller = Caller(node.peer)
        echo(caller)
        before = count()
        for _ in range(20):
            echo(caller)
        eventually(lambda: count() <= before + 2, "the files to be closed")
