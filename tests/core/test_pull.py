"""`iopfl bank pull` at a server that was changed: one plain line, and nothing of it stays."""

from __future__ import annotations

import gzip
import socket
import threading

import pytest

from iopfl.base.errors import IOPFLError
from iopfl.cli.pull import pull_bank
from iopfl.core.bank.signing import Keyring

OK, FAILED = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 No\r\n"
BOMB = gzip.compress(bytes(2**26))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (OK + b"Content-Length: abc\r\n\r\nno bank", "its manifest.json first"),
        (OK + b"Content-Length: -5\r\n\r\nno bank", "its manifest.json first"),
        (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nno bank", "expected a whole|no answer"),
        (OK + b"Content-Encoding: gzip\r\n\r\n" + BOMB, "without compression"),
        (OK + b"X: " + b"a" * 100_000 + b"\r\n\r\n", "no answer"),
        (FAILED + b"\r\n" + b'{"detail": "\\u001b[2J\\u0007 a\\nline"}', r"500 \?\[2J\? a line: check"),
        (b"HTTP/1.1 500 \x1b[2Jboo\r\n\r\n", r"500 \?\[2Jboo: check"),
        (FAILED + b"\r\n" + b"[" * 100_000, "500 No: check"),
        (FAILED + b"Content-Encoding: gzip\r\n\r\n" + BOMB, "500 No: check"),
        (FAILED + b"\r\n" + bytes(2**24), "500 No: check"),
        (b"", "no answer"),
    ],
    ids=range(11),
)
def test_a_changed_server_gets_one_plain_line_and_leaves_nothing(answer, said, tmp_path):
    def serve():
        connection, _ = listener.accept()
        with connection:
            connection.recv(2**16)
            try:
                connection.sendall(answer)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/disk.iopfl"
        with pytest.raises(IOPFLError, match=said) as caught:
            pull_bank(url, tmp_path / "bank", keys=Keyring(tmp_path / "keys"))
        thread.join(10)
    assert str(caught.value).isprintable() and not (tmp_path / "bank").exists()
