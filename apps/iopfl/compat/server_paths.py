"""Answers tell where the server's folders are.

Defect: `GET /datastore/image/info`, `/datastore/?output=train`, `POST /activelearning/<strategy>` and `/session/`
answer with absolute paths (`datastore/local.py:258,217`, `interfaces/app.py:460`, `utils/sessions.py:30`), the texts of
errors and a task's last lines with others. To an attacker they say what to ask for.
Upstream: not reported.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iopfl.base.names import find_path
from iopfl.compat._patching import once

_WORDS = ("application/json", "text/plain", "text/html")
"""Media types that are looked through; files are sent as they are."""
_FOLDERS_IN_CONF = ("state", "keys", "bank", "tasks")
_OF_OTHERS = "/proxy/"
"""What the PACS answers is not ours to change."""


class HidesPlaces:
    """Middleware: of a path below one of the server's folders, an answer in words has what is below it."""

    def __init__(self, app: ASGIApp, folders: Iterable[str]) -> None:
        self._app = app
        # As JSON writes them; the longest first, as one may lie in another.
        names = sorted({json.dumps(folder, ensure_ascii=False)[1:-1] for folder in folders}, key=len, reverse=True)
        any_of_them = b"|".join(re.escape(name.encode()) for name in names)
        self._places = re.compile(rb"(?<![\w.-])(?:" + any_of_them + rb")(/|(?![\w.-]))")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "HEAD" or find_path(scope).startswith(_OF_OTHERS):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = bytearray()

        async def hide(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_in_words(message):
                start = message
            elif start is not None and message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    content = self._places.sub(b"", bytes(body))
                    MutableHeaders(scope=start)["content-length"] = str(len(content))
                    await send(start)
                    await send({"type": "http.response.body", "body": content})
            else:
                await send(message)

        await self._app(scope, receive, hide)


def _is_in_words(message: Message) -> bool:
    headers = Headers(scope=message)
    return headers.get("content-type", "").startswith(_WORDS) and "content-encoding" not in headers


def _find_folders() -> Iterator[str]:
    """The folders that this server reads and writes, and those its code is in."""
    from monailabel.config import settings

    conf = settings.MONAI_LABEL_APP_CONF
    named = [name for key in _FOLDERS_IN_CONF for name in str(conf.get(key) or "").split(",")]
    own = (settings.MONAI_LABEL_STUDIES, settings.MONAI_LABEL_APP_DIR, settings.MONAI_LABEL_SESSION_PATH)
    code = (str(Path(__file__).parents[1]), sys.prefix, *sys.path)
    for name in (*own, *named, *code, tempfile.gettempdir()):
        for path in (Path(name or "."), Path(name or ".").resolve()):
            if path.is_absolute() and len(path.parts) > 1:
                yield str(path)


@once
def apply() -> None:
    """Look through what this server answers."""
    from monailabel.app import app

    app.add_middleware(HidesPlaces, folders=list(_find_folders()))
