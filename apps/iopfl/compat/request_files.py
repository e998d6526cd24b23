"""What a refused request brought stays in the temporary folder for ever, where every user of the machine may read it.

Defect: `endpoints/datastore.py:72,103`, `endpoints/infer.py:135,144`, `endpoints/wsi_infer.py:90`,
`endpoints/session.py:72` and `utils/sessions.py:122` write to a name that `tempfile` has let go again, with
ordinary permissions, and remove it in a background task, which FastAPI does not run for a request that fails.
Upstream: not reported.
"""

from __future__ import annotations

import tempfile
import threading
import uuid
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from iopfl.base.files import Scratch
from iopfl.compat._patching import guard, once


class RequestFiles:
    """The files of one request: in a folder that only this user reads, gone when the request has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Scratch | None = None
        self._others: list[Path] = []

    def name_file(self, suffix: str | None = None) -> Path:
        """A path that does not exist; its name may stand in a message, so it says nothing."""
        with self._lock:
            if self._folder is None:
                self._folder = Scratch(Path(tempfile.gettempdir(), "iopfl-request"))
            folder = self._folder.path / uuid.uuid4().hex
            folder.mkdir()
            return folder / f"upload{suffix or ''}"

    def adopt(self, path: Path) -> None:
        """Remove a file that lies elsewhere as well."""
        with self._lock:
            self._others.append(path)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remove."""
        return self._folder is None and not self._others

    def remove(self) -> None:
        """Remove them all."""
        for path in self._others:
            path.unlink(missing_ok=True)
        if self._folder is not None:
            self._folder.remove()


_files: ContextVar[RequestFiles] = ContextVar("files of the request")


class RemovesFiles:
    """Middleware: gives each request its `RequestFiles`, and removes them however it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        files = RequestFiles()
        token = _files.set(files)
        try:
            await self._app(scope, receive, send)
        finally:
            _files.reset(token)
            if not files.is_empty:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(files.remove)


def _name_only(suffix: str | None = None) -> SimpleNamespace:
    """What these modules use of `NamedTemporaryFile` and `TemporaryDirectory`."""
    return SimpleNamespace(name=str(_files.get().name_file(suffix)))


def _adopt_answer(arguments: dict[str, Any]) -> None:
    """Have an inference's mask removed even if it cannot be sent."""
    if (file := arguments["result"].get("file")) and Path(file).is_file():
        _files.get().adopt(Path(file))


@once
def apply() -> None:
    """Name the files of a request in a folder of its own."""
    from monailabel.app import app
    from monailabel.endpoints import datastore, infer, session, wsi_infer
    from monailabel.utils import sessions

    names = SimpleNamespace(NamedTemporaryFile=_name_only, TemporaryDirectory=_name_only)
    for module in (datastore, infer, session, sessions, wsi_infer):
        module.tempfile = names
    for module in (infer, wsi_infer):
        guard(module, "send_response", _adopt_answer)
    app.add_middleware(RemovesFiles)
