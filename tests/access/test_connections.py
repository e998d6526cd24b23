"""Who keeps the server waiting loses the connection, and nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import pytest
import requests
import uvicorn

from iopfl.access.connections import BoundedConnection
from label_server import wait_until

PART = b"GET / HTTP/1.1\r\nHost: x\r\n"
WHOLE = PART + b"\r\n"


class Hasty(BoundedConnection):
    """Twenty connections, and seconds in place of minutes."""

    most, header_seconds, body_seconds, answer_seconds = 20, 1.0, 1.0, 1.0


async def app(scope, receive, send):
    """Answers at once, or a while after the body has come; its answer is what came."""
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/later":
        await asyncio.sleep(2.5)
    body = bytes(2**23) if scope["path"] == "/large" else str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def server():
    server = uvicorn.Server(uvicorn.Config(app, http=Hasty, lifespan="off", log_config=None, ws="none"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield server
    server.should_exit = True
    thread.join(30)
    listener.close()


@pytest.fixture(scope="module")
def address(server):
    wait_until(lambda: server.started, 30, what="the server")
    return server.servers[0].sockets[0].getsockname()


def connect(address, first: bytes = b"") -> socket.socket:
    connection = socket.create_connection(address, timeout=10)
    connection.sendall(first)
    return connection


def is_ended(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    with contextlib.suppress(ConnectionResetError):
        try:
            return connection.recv(1000) == b""
        except TimeoutError:
            return False
    return True


@pytest.mark.parametrize("first", [b"", b"G", PART], ids=["nothing", "a byte", "half a header"])
def test_many_who_send_no_whole_header_keep_nobody_out(address, first):
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(address, first)) for _ in range(60)]
        started = time.monotonic()
        assert requests.get(f"http://127.0.0.1:{address[1]}/", timeout=10).text == "0"
        assert time.monotonic() - started < 5
        assert sum(is_ended(one, 0.05) for one in silent) >= 40, "there are places for twenty"
        assert all(is_ended(one, 5) for one in silent)


def test_a_header_that_comes_byte_by_byte_is_not_waited_for(address):
    """The second one of a connection neither, which uvicorn's own timer lets go on once a byte of it is there."""
    for before in (b"", WHOLE):
        with connect(address, before) as slow:
            if before:
                assert b"200 OK" in slow.recv(1000)
            with pytest.raises(OSError):
                for byte in PART * 10:
                    slow.sendall(bytes([byte]))
                    time.sleep(0.1)


def test_a_body_that_hardly_comes_is_not_waited_for(address):
    with (
        connect(address, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n") as slow,
        pytest.raises(OSError),
    ):
        for _ in range(60):
            slow.sendall(b"x")
            time.sleep(0.1)


def test_long_answers_and_bodies_that_come_steadily_pass(address):
    def pieces():
        for _ in range(25):
            time.sleep(0.1)
            yield bytes(300)

    with connect(address, b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n") as patient:
        sent = requests.post(f"http://127.0.0.1:{address[1]}/", data=pieces(), timeout=20)
        assert sent.text == "7500"
        patient.settimeout(10)
        assert b"200 OK" in patient.recv(1000)


def test_who_was_told_to_wait_before_sending_may_wait(address):
    head = b"POST /later HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    with connect(address, head) as polite:
        assert b"100 Continue" in polite.recv(1000)
        polite.sendall(b"12345")
        assert b"200 OK" in polite.recv(1000)


def test_many_who_take_no_answer_keep_nobody_out(server, address):
    """A stranger too, who asks for the sign-in page hundreds of times."""
    sent = WHOLE.replace(b"/", b"/large", 1)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(address)
            one.sendall(sent)
        time.sleep(0.3)
        assert requests.get(f"http://127.0.0.1:{address[1]}/", timeout=10).text == "0"
        wait_until(lambda: not server.server_state.connections, 10, what="their connections to end")


def test_many_who_ask_again_before_they_are_answered_keep_nobody_out(address):
    """They are neither silent nor slow: each request of a row is answered at once, the next one as well."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(address, WHOLE.replace(b"/", b"/later", 1) * 20))
        time.sleep(0.3)
        assert requests.get(f"http://127.0.0.1:{address[1]}/", timeout=10).text == "0"


def takes_all_slowly(address) -> bool:
    """Take a large answer for about three times `answer_seconds`; False if the connection ended before."""
    with connect(address, WHOLE.replace(b"/", b"/large", 1)) as slow:
        got = 0
        while got < 2**23:
            with contextlib.suppress(ConnectionResetError):
                part = b""
                part = slow.recv(2**17)
            if not part:
                return False
            got += len(part)
            time.sleep(0.04)
    return True


def test_who_takes_a_large_answer_slowly_gets_it(address):
    """Of three tries one is enough: on a busy machine this process may rest for as long as `answer_seconds`."""
    assert any(takes_all_slowly(address) for _ in range(3))


def test_bodies_that_come_bit_by_bit_keep_nobody_out(address):
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(address, head + bytes(1000)))
        time.sleep(0.3)
        assert requests.get(f"http://127.0.0.1:{address[1]}/", timeout=10).text == "0"
