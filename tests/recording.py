"""A server on loopback that takes down what it is asked: what must not go there, did not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Recorder:
    """A server that takes down what it is asked, and answers with what a test wants."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status, self.headers, self.body = 200, {"Content-Type": "application/dicom+json"}, b"[]"
        self.url = ""


@contextmanager
def recorder() -> Iterator[Recorder]:
    ours = Recorder()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ours.asked.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(ours.status)
            for name, value in {**ours.headers, "Content-Length": str(len(ours.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(ours.body)

        do_POST = do_CONNECT = do_GET  # noqa: N815  # as http.server calls them

        def log_message(self, *_) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    ours.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield ours
    finally:
        server.shutdown()
        server.server_close()
