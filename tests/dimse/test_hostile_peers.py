"""Peers that want the listener for themselves, or more of it than there is: others get in, and nothing is left."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import build_context
from pynetdicom.dimse_messages import C_FIND_RQ, N_EVENT_REPORT_RQ
from pynetdicom.dimse_primitives import C_FIND, N_EVENT_REPORT
from pynetdicom.sop_class import MRImageStorage, Verification

from dimse import wire
from dimse.nodes import HERE, Node, eventually, make_certificates, make_slices, plain_association, running_scp
from dimse.nodes import send_plainly as send
from dimse.retrieving import get
from iopfl.dimse import acceptor, asking, lobby, messages, query, room, spool
from iopfl.dimse.peers import TLS, Peer
from iopfl.dimse.scu import Caller, echo

REQUEST = wire.association_request()


@pytest.fixture
def lines(caplog):
    """What is said in the log."""
    caplog.set_level(logging.INFO, "iopfl")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "said", [b"", REQUEST[:1], REQUEST[:6], REQUEST[:-1]], ids=["nothing", "a byte", "head", "part"]
)
@pytest.mark.parametrize("half_closed", [False, True])
def test_connections_that_ask_for_nothing_keep_nobody_out(tmp_path, said, half_closed):
    with running_scp(tmp_path, max_associations=2) as node, ExitStack() as stack:
        before = threading.active_count()
        for _ in range(60):
            connection = stack.enter_context(socket.create_connection((HERE, node.port)))
            connection.sendall(said)
            if half_closed:
                connection.shutdown(socket.SHUT_WR)
        assert echo(Caller(node.peer)) < lobby.PATIENCE_SECONDS
        assert threading.active_count() <= before + 4, "they have no threads"


def test_a_connection_that_ends_as_it_gets_an_association_ends_nothing_else(tmp_path, lines, monkeypatch):
    original = acceptor.TunedServer.finish_request

    def end_at_once(self, request, address):
        monkeypatch.setattr(acceptor.TunedServer, "finish_request", original)
        request.close()

    with running_scp(tmp_path) as node, socket.create_connection((HERE, node.port)) as connection:
        monkeypatch.setattr(acceptor.TunedServer, "finish_request", end_at_once)
        connection.sendall(REQUEST)
        connection.settimeout(20)
        assert connection.recv(1) == b""
        assert echo(Caller(node.peer)) < lobby.PATIENCE_SECONDS
    assert "a connection failed" not in lines()


def test_what_goes_wrong_with_one_connection_ends_no_other(tmp_path, lines, monkeypatch):
    original = lobby.read_request

    def fail(pdu):
        monkeypatch.setattr(lobby, "read_request", original)
        raise ValueError("whatever nobody thought of")

    with running_scp(tmp_path) as node, socket.create_connection((HERE, node.port)) as connection:
        monkeypatch.setattr(lobby, "read_request", fail)
        connection.sendall(REQUEST)
        eventually(lambda: "a connection failed (ValueError)" in lines(), "the failure")
        assert echo(Caller(node.peer)) < lobby.PATIENCE_SECONDS


def test_of_too_many_connections_the_oldest_goes(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(lobby, "_MOST", 8)
    folder = make_certificates(tmp_path / "certificates")
    tls = TLS(folder / "ca.pem", folder / "node.pem", folder / "node.key")
    with running_scp(tmp_path / "node", tls=tls, max_associations=2) as node, ExitStack() as stack:
        first, *_ = [stack.enter_context(socket.create_connection((HERE, node.port))) for _ in range(30)]
        assert echo(Caller(Peer("IOPFL", HERE, node.port, tls))) > 0
        first.settimeout(20)
        assert first.recv(1) == b""
        assert len(node.scp._server.lobby) <= 8
    assert "too many connections" in lines()


def test_associations_that_are_idle_make_room_for_who_holds_fewer(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(acceptor, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(lobby, "PATIENCE_SECONDS", 20.0)
    with running_scp(tmp_path, max_associations=4) as node, ExitStack() as stack:
        idle = [stack.enter_context(plain_association(node.port, aet="STRANGER")) for _ in range(4)]
        assert all(assoc.is_established for assoc in idle)
        with plain_association(node.port, aet="SCANNER") as known:
            assert known.is_established and known.send_c_echo().Status == 0
            eventually(lambda: sum(assoc.dul.is_alive() for assoc in idle) == 3, "the end of one")
    assert "association with STRANGER at 127.0.0.1 ends to make room" in lines()


def test_nobody_makes_room_for_a_peer_that_holds_as_many(tmp_path, monkeypatch):
    monkeypatch.setattr(acceptor, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(lobby, "PATIENCE_SECONDS", 0.1)
    with running_scp(tmp_path, max_associations=2) as node, ExitStack() as stack:
        for title in ("ONE", "TWO"):
            assert stack.enter_context(plain_association(node.port, aet=title)).is_established
        with plain_association(node.port, aet="ONE") as another:
            assert another.is_established, "in the place of its own"
            with plain_association(node.port, aet="TWO") as again:
                assert again.is_established
        eventually(lambda: not node.scp._server.active_associations, "the end of all")


def test_an_association_at_work_makes_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(acceptor, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(lobby, "PATIENCE_SECONDS", 0.2)
    (ds,) = make_slices(1)
    begun, go_on, statuses = threading.Event(), threading.Event(), []
    with running_scp(tmp_path, max_associations=1) as node:
        store = node.inbox.store

        def slowly(*arguments):
            begun.set()
            go_on.wait(20)
            return store(*arguments)

        monkeypatch.setattr(node.inbox, "store", slowly)
        sender = threading.Thread(target=lambda: statuses.extend(send(node.port, [ds])))
        sender.start()
        assert begun.wait(20)
        with plain_association(node.port, aet="OTHER") as other:
            assert other.is_rejected and other.acceptor.primitive.reason_str == "Local limit exceeded"
        go_on.set()
        sender.join()
    assert statuses == [0]


def _request(contexts: int, syntaxes: int) -> bytes:
    """An A-ASSOCIATE-RQ with so many presentation contexts of so many transfer syntaxes."""

    def item(kind: int, content: bytes) -> bytes:
        return struct.pack(">BxH", kind, len(content)) + content

    context = item(0x30, Verification.encode()) + item(0x40, b"1.2.840.10008.1.2") * syntaxes
    body = REQUEST[6:74] + item(0x10, b"1.2.840.10008.3.1.1.1")
    body += b"".join(item(0x20, struct.pack(">B3x", (2 * number + 1) % 256) + context) for number in range(contexts))
    body += REQUEST[REQUEST.rindex(b"\x50\x00") :]
    return struct.pack(">BxL", 1, len(body)) + body


@pytest.mark.parametrize(
    ("contexts", "syntaxes", "is_taken"), [(128, 1, True), (128, 40, True), (129, 1, False), (100, 80, False)]
)
def test_a_request_that_negotiates_without_end_is_rejected_for_good(tmp_path, lines, contexts, syntaxes, is_taken):
    with running_scp(tmp_path) as node, socket.create_connection((HERE, node.port)) as peer:
        peer.settimeout(20)
        peer.sendall(_request(contexts, syntaxes))
        answer = peer.recv(10)
        assert answer[0] == (2 if is_taken else 3)
        if not is_taken:
            assert answer == asking.Refusal.TOO_MUCH.pdu
            assert "Local limit exceeded by what it wants to negotiate" in lines()


def _converse(node: Node, *pdus: bytes) -> bytes:
    return wire.converse(node.port, [REQUEST, *pdus], seconds=20)


def test_an_event_report_that_nobody_asked_for_ends_the_association(tmp_path, lines):
    report = N_EVENT_REPORT()
    report.MessageID, report.EventTypeID = 1, 1
    report.AffectedSOPClassUID, report.AffectedSOPInstanceUID = Verification, "1.2.3"
    with running_scp(tmp_path) as node:
        _converse(node, *wire._pdus(N_EVENT_REPORT_RQ(), report, 1))
        assert "sent an event report, which nobody asked for: aborted" in lines()


def test_a_query_without_end_ends_the_association(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(messages, "MAX_MESSAGE", 50_000)
    find = C_FIND()
    find.MessageID, find.Priority, find.AffectedSOPClassUID = 3, 2, wire.SOP_CLASSES[2]
    find.Identifier = BytesIO(b"\x10\x00\x10\x00UT\0\0" + struct.pack("<L", 200_000) + b"x" * 200_000)
    with running_scp(tmp_path) as node:
        _converse(node, *wire._pdus(C_FIND_RQ(), find, 5))
        eventually(lambda: "sent a message of more than 50000 bytes: aborted" in lines(), "the abort")


@pytest.fixture
def small_memory(monkeypatch):
    """Instances of more than a few bytes go through files."""
    monkeypatch.setattr(spool, "MEMORY", 4000)


def large_slice(**elements: object) -> Dataset:
    (ds,) = make_slices(1, size=512)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def test_a_large_instance_is_written_as_it_comes(tmp_path, small_memory, monkeypatch):
    ds, begun = large_slice(), []
    begin = spool.Spool._write_to_file
    monkeypatch.setattr(spool.Spool, "_write_to_file", lambda self, data: (begun.append(self), begin(self, data)))
    with running_scp(tmp_path) as node:
        assert send(node.port, [ds, ds]) == [0, 0]
        (path,) = node.stored()
        assert dcmread(path) == ds
        assert path.stat().st_mode & 0o077 == 0
        eventually(lambda: not list((tmp_path / "incoming").iterdir()), "nothing to be left")
        assert node.inbox.size == path.stat().st_size
        assert node.inbox.room._coming == 0
    assert all(len(came.getbuffer()) <= 4000 for came in begun) and begun, "it went through a file"


def test_a_large_instance_comes_by_c_get_as_it_is(tmp_path, small_memory, monkeypatch):
    monkeypatch.setattr(query, "LARGE", 4000)
    ds = large_slice()
    with running_scp(
        tmp_path / "node", services=lambda inbox: [query.QueryRetrieve(inbox, lambda title: None).service]
    ) as node:
        assert send(node.port, [ds]) == [0]
        answer = get(node.port, [f"SeriesInstanceUID={ds.SeriesInstanceUID}"])
        assert answer.completed == 1 and answer.received == [dcmread(node.stored()[0])]


def test_an_instance_that_breaks_off_leaves_nothing(tmp_path, small_memory):
    with running_scp(tmp_path) as node:
        _converse(node, *wire.store_request(large_slice())[:-1])
        eventually(lambda: not node.scp._server.active_associations, "the end")
        eventually(lambda: not list((tmp_path / "incoming").iterdir()), "nothing to be left")
        assert node.stored() == [] and node.inbox.room._coming == 0


def test_what_is_coming_counts_whoever_sends_it(tmp_path, small_memory):
    first, second = large_slice(), large_slice(SOPInstanceUID="1.2.3")
    with running_scp(tmp_path, max_bytes=600_000) as node, socket.create_connection((HERE, node.port)) as slow:
        slow.sendall(REQUEST)
        assert slow.recv(1) == b"\x02"
        slow.sendall(b"".join(wire.store_request(first)[:-1]))
        eventually(lambda: node.inbox.room._coming > 400_000, "most of the first")
        assert send(node.port, [second]) == [0xA700]
        slow.close()
        eventually(lambda: not node.inbox.room._coming, "the room")
        assert send(node.port, [second]) == [0]


def test_a_full_disk_is_said_once_and_is_over_by_itself(tmp_path, lines, small_memory, monkeypatch):
    datasets = [*make_slices(2, size=16), large_slice()]
    with running_scp(tmp_path, min_free=10**6) as node:
        free = room.Room._free_bytes
        monkeypatch.setattr(room.Room, "_free_bytes", lambda self: 10**6)
        assert send(node.port, datasets) == [0xA700] * 3
        assert node.stored() == [] and not list((tmp_path / "incoming").iterdir())
        monkeypatch.setattr(room.Room, "_free_bytes", free)
        assert send(node.port, datasets) == [0] * 3
    assert lines().count("the disk is full up to the 1000000 bytes that stay free") == 1
    assert lines().count("there is room for instances again") == 1


def test_series_without_end_are_no_more_than_can_be_held(tmp_path, monkeypatch):
    monkeypatch.setattr("iopfl.dimse.inbox.MAX_SERIES", 2)
    series = [make_slices(1, series=f"{number}")[0] for number in range(3)]
    with running_scp(tmp_path) as node:
        assert send(node.port, [*series, *make_slices(2, series="1")]) == [0, 0, 0xA700, 0, 0]


def test_an_instance_where_none_is_taken_ends_the_association(tmp_path, lines):
    (ds,) = make_slices(1)
    requested = [build_context(MRImageStorage)]
    pdus = wire.store_request(ds)
    with running_scp(tmp_path) as node, plain_association(node.port, requested):
        wrong = [bytes(pdu[:10]) + b"\x09" + bytes(pdu[11:]) for pdu in pdus]  # another context
        _converse(node, *wrong)
        assert node.stored() == []
    assert Path(tmp_path / "incoming").exists()
