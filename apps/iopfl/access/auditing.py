"""Every change that somebody asks for, and every copy of an image, a label or a model that is taken: one line.

Recorded are who, which route, which image or label (`access.audit` says how), the answer's status, and
the SHA-256 of the file that came; where an account may not do something, that too. A request without
a valid sign-in changed nothing and has no name to it: of those, attempts to sign in are recorded
alone, as many as `access.throttle` admits, so that nobody can fill the disk from outside.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import anyio
from anyio import CapacityLimiter
from fastapi.responses import JSONResponse
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iopfl.access.identity import Access
from iopfl.base.names import find_path, name_route

logger = logging.getLogger(__name__)

ABOUT = "iopfl.audit"
"""Key of an ASGI scope under which a route may leave more to say about what it did: a dict of text."""

TAKEN = re.compile(
    r"/datastore/(image|label|dataset)|/model/[^/]+|/iopfl/banks/.+|/iopfl/federations/.+/weights"
    r"|/iopfl/labels/[^/]+/versions/[^/]+|/iopfl/answer|/iopfl/disagreement|/iopfl/sizes\.csv|/proxy/dicom/(qido|wado)/studies/.+/metadata"
    r"|/proxy/dicom/wado/studies/[^/]+(/series/[^/]+(/instances/[^/]+)?)?"
)
"""Reading these takes something of a patient's or of the site's away.

A browser that opens an image asks for `/iopfl/answer` or for a series' metadata; that it then reads hundreds of
frames (`LOOKED_AT`) is not recorded once more.
"""

SEARCHED = re.compile(r"/proxy/dicom/qido/(?:.+/)?(studies|series|instances)")
"""A search gives names and numbers of patients: of each kind, the first one that somebody makes on a day is recorded.

What was searched for is not, as it may be a patient's name.
"""

LOOKED_AT = re.compile(
    r"/iopfl/overlay\.png|/proxy/dicom/wado/studies/.+/(frames/[^/]+|rendered|thumbnail|pixeldata|bulk(data)?(/.*)?)"
)
"""Reading these takes a part of an image: of each, the first one that somebody reads on a day is recorded."""
_MOST_LOOKED_AT = 20_000

_SIGNING_IN = {("POST", "/auth/token"), ("POST", "/iopfl/signin"), ("GET", "/iopfl/signin/callback")}
_CHANGES = {"PUT", "POST", "DELETE", "PATCH"}
_AS_GIVEN = ("model", "method", "strategy", "task", "federation", "round_index", "kind")
"""Parts of an address that name what an administrator or a consortium set up; once the server knew them."""
_TAGS = ("final", "original")


class Auditing:
    """ASGI middleware, inside the limits and around the gate: what is refused is recorded too."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._owed: list[tuple[str, str, dict[str, str], str]] = []
        self._taken: set[tuple[str, str, date]] = set()
        self._lock = threading.Lock()
        self._threads = CapacityLimiter(4)  # of its own: endpoints may keep all of FastAPI's

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_recorded(scope):
            await self._app(scope, receive, send)
            return
        if self._owed and not await self._in_thread(self._pay):
            detail = "what is done cannot be recorded (see the log): the server's disk may be full"
            await JSONResponse({"detail": detail}, 503, headers={"Retry-After": "60"})(scope, receive, send)
            return
        content = _Content(Headers(scope=scope).get("content-type", ""))
        status = 0

        async def read() -> Message:
            message = await receive()
            content.feed(message.get("body", b""))
            return message

        async def record(message: Message) -> None:
            # Before the answer: what somebody was told is done stands in the log.
            nonlocal status
            if message["type"] == "http.response.start" and not status:
                status = message["status"]
                await self._in_thread(self._record, scope, status, content.digest())
            await send(message)

        try:
            await self._app(scope, read, record)
        except Exception:
            if not status:
                await self._in_thread(self._record, scope, 500, content.digest())
            raise

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self._threads)

    def _record(self, scope: Scope, status: int, digest: str) -> None:
        who = scope["user"].username if "user" in scope else ""
        signing_in = (scope["method"], find_path(scope)) in _SIGNING_IN
        # An attempt to sign in has been named by its route; what that refused before was none.
        is_known = who or (ABOUT in scope if signing_in else self._access.mode == "off")
        if not is_known:
            return
        if found := SEARCHED.fullmatch(find_path(scope)):
            about = {"searched": found[1]}
        else:
            about = {} if signing_in else _describe(Request(scope), status)
        if scope["method"] == "GET" and status < 400 and not self._is_first(scope, who, about):
            return
        about |= {"status": str(status), **scope.get(ABOUT, {})}
        # What a form holds when somebody signs in is a password.
        line = (who, f"{scope['method']} {name_route(scope)}", about, "" if signing_in else digest)
        with self._lock:
            self._owed.append(line)
        self._pay()

    def _is_first(self, scope: Scope, who: str, about: dict[str, str]) -> bool:
        """Whether a search, or a part of an image, is somebody's first today; what else is taken always counts."""
        of = about.get("searched") or about.get("image") or about.get("series") or about.get("study", "")
        key = (who, of, datetime.now(UTC).date())
        is_new = key not in self._taken
        if len(self._taken) >= _MOST_LOOKED_AT:
            self._taken.clear()
        self._taken.add(key)
        return is_new or not any(kind.fullmatch(find_path(scope)) for kind in (LOOKED_AT, SEARCHED))

    def _pay(self) -> bool:
        """Write what is to be written; whether nothing is left. As long as something is, no change is let in."""
        with self._lock:
            while self._owed:
                try:
                    self._access.log.append(*self._owed[0])
                except OSError as error:
                    logger.error("the audit log cannot be written: %s", error.strerror)
                    return False
                self._owed.pop(0)
            return True


def _is_recorded(scope: Scope) -> bool:
    method, path = scope["method"], find_path(scope)
    if method in _CHANGES or (method, path) in _SIGNING_IN:
        return True
    return method == "GET" and any(kind.fullmatch(path) for kind in (TAKEN, LOOKED_AT, SEARCHED))


def _describe(request: Request, status: int) -> dict[str, str]:
    """Which image, label, task a request is about, as far as its address says."""
    asked: dict[str, Any] = {**request.query_params, **request.path_params}
    about = {}
    for name in ("image", "label"):
        if isinstance(asked.get(name), str):
            about[name] = asked[name]
    if isinstance(asked.get("id"), str):
        about["image"] = asked["id"]
    if isinstance(asked.get("session_id"), str):
        about["session"] = asked["session_id"]
    if asked.get("tag"):
        about["tag"] = asked["tag"] if asked["tag"] in _TAGS else "another"
    if status < 400:
        about |= {name: str(request.path_params[name]) for name in _AS_GIVEN if name in request.path_params}
    for name, part in (("study", "studies"), ("series", "series"), ("instance", "instances")):
        if found := re.search(rf"(?:^|/){part}/([0-9.]+)", str(asked.get("path", ""))):
            about[name] = found[1]
    return about


class _Content:
    """SHA-256 of what a request brings: of the files in a form, else of the body; as it passes, without keeping it."""

    def __init__(self, content_type: str) -> None:
        self._hash = hashlib.sha256()
        self._is_empty = self._is_whole = True
        self._parser: MultipartParser | None = None
        kind, options = parse_options_header(content_type)
        if kind == b"multipart/form-data" and b"boundary" in options:
            self._parser = self._make_parser(options[b"boundary"])

    def feed(self, chunk: bytes) -> None:
        if not chunk or not self._is_whole:
            return
        if self._parser is None:
            self._add(chunk)
            return
        try:
            self._parser.write(chunk)
        except FormParserError:  # the route will refuse it
            self._is_whole = False

    def digest(self) -> str:
        return "" if self._is_empty or not self._is_whole else self._hash.hexdigest()

    def _add(self, content: bytes) -> None:
        self._is_empty = False
        self._hash.update(content)

    def _make_parser(self, boundary: bytes) -> MultipartParser | None:
        head = bytearray()
        is_file = False

        def begin() -> None:
            nonlocal is_file
            head.clear()
            is_file = False

        def on_head(data: bytes, start: int, end: int) -> None:
            head.extend(data[start:end])

        def on_headers() -> None:
            nonlocal is_file
            is_file = b"filename=" in head.lower() or b"filename*=" in head.lower()

        def on_data(data: bytes, start: int, end: int) -> None:
            if is_file:
                self._add(data[start:end])

        callbacks: dict[str, Callable] = {
            "on_part_begin": begin,
            "on_header_value": on_head,
            "on_headers_finished": on_headers,
            "on_part_data": on_data,
        }
        try:
            return MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError:
            return None
