"""The one way in: with authentication on, nothing answers before it is known who asks.

Every route is closed unless `PUBLIC` names it, whoever wrote it: MONAI Label, OHIF's files, or we.
Roles are checked once more by the routes themselves (`access.roles`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urlsplit

import anyio
from anyio import CapacityLimiter
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from monailabel.config import settings
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iopfl.access.auditing import Auditing
from iopfl.access.identity import Access, Caller
from iopfl.access.limits import Limits
from iopfl.access.roles import FEDERATION_ROLE, OUTSIDE_ROLE
from iopfl.access.signin import router as signin
from iopfl.base.errors import AccessError
from iopfl.base.names import find_path

logger = logging.getLogger(__name__)

SIGN_IN = "/iopfl/signin"
PUBLIC = frozenset(
    {
        ("GET", "/auth/"),
        ("POST", "/auth/token"),
        ("GET", "/iopfl/health"),
        ("GET", SIGN_IN),
        ("POST", SIGN_IN),
        ("GET", "/iopfl/static/style.css"),
        ("GET", f"{SIGN_IN}/signin.css"),
        ("GET", f"{SIGN_IN}/signin.js"),
        ("GET", f"{SIGN_IN}/service"),
        ("GET", f"{SIGN_IN}/callback"),
    }
)
"""All that answers without a sign-in. HEAD goes with GET."""

_OF_EVERYBODY = frozenset({"/auth/token/valid", "/iopfl/me", "/iopfl/signout"})
"""For whoever has signed in, in whatever role."""
_FEDERATION = "/iopfl/federations/"
_BANKS = "/iopfl/banks/"
_LATER = "nobody can sign in just now: the administrator finds the reason in the server's log"
_CHANGES_NOTHING = frozenset({"GET", "HEAD", "OPTIONS"})
_CACHED = ("/ohif/", "/static/")
"""The viewer's own files: the same for everybody, and large."""
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'"
"""For pages that bring none of their own: whatever they ask for comes from this server."""
_OF_OTHERS = ("/datastore/", "/infer/", "/batch/", "/session/", "/proxy/", "/iopfl/labels/", "/logs/")
"""Here answers are, or hold, what somebody uploaded or a PACS sent."""
_RUNS_NOTHING = "sandbox; default-src 'none'; frame-ancestors 'none'"
_SHOWN = ("application/json", "text/plain", "image/png")
"""Of those, what a browser may show by itself. The rest is a file to keep; a page's own requests get it as ever."""


def install(app: FastAPI, access: Access) -> None:
    """Put limits, audit and gate in front of an app, outermost first. CORS stays before the gate: it asks no token."""
    app.include_router(signin)
    app.add_exception_handler(RequestValidationError, _explain_invalid)
    app.add_exception_handler(AccessError, _explain_later)
    app.state.access = access
    outer = [Middleware(Limits, settings=access.settings), *app.user_middleware]
    app.user_middleware[:] = [*outer, Middleware(Auditing, access=access), Middleware(Gate, access=access)]


class Gate:
    """ASGI middleware: finds out who asks, and refuses who may not."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._threads = CapacityLimiter(8)  # of its own: endpoints may keep all of FastAPI's

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # no route has any
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send, find_path(scope))
        refusal = await self._refuse(scope)
        await (refusal or self._app)(scope, receive, send)

    async def _refuse(self, scope: Scope) -> Response | None:
        """The answer to who may not come in; None = go on."""
        headers, path, method = Headers(scope=scope), find_path(scope), scope["method"]
        caller = None
        is_public = ("GET" if method == "HEAD" else method, path) in PUBLIC
        if self._access.mode != "off" and not is_public:
            try:
                caller = await self._identify(headers)
            except HTTPException as error:
                if error.status_code == 401 and method == "GET" and _is_navigation(headers):
                    return _to_sign_in(scope, path)
                return _explain(error.status_code, error.detail, error.headers)
            scope["user"] = caller.user
            if not _may_enter(path, caller.user.roles):
                return _explain(403, "this account may not do that here: ask the administrator for a role that may")
        if method not in _CHANGES_NOTHING and not _is_meant(headers, caller):
            return _explain(403, "this request comes from another web page: use this server's own")
        return None

    async def _identify(self, headers: Headers) -> Caller:
        cookies = cookie_parser(headers.get("cookie", ""))
        try:
            if self._access.mode == "local":  # a fraction of a millisecond: no thread is worth it
                return self._access.identify(headers, cookies)
            return await anyio.to_thread.run_sync(self._access.identify, headers, cookies, limiter=self._threads)
        except AccessError as error:
            logger.error("%s", error)
            raise HTTPException(503, _LATER, headers={"Retry-After": "60"}) from error


def _may_enter(path: str, roles: Iterable[str]) -> bool:
    if path.startswith(_FEDERATION):
        return FEDERATION_ROLE in roles
    if path.startswith(_BANKS) and OUTSIDE_ROLE in roles:
        return True
    return path in _OF_EVERYBODY or settings.MONAI_LABEL_AUTH_ROLE_USER in roles


def _is_meant(headers: Headers, caller: Caller | None) -> bool:
    """Whether a change was asked for by a program or a page of ours, not by a page elsewhere in somebody's browser.

    A browser says where a request comes from in `Sec-Fetch-Site` or at least `Origin`; a program
    says neither, and does not send a cookie. What carries a token was written by who has the token.
    """
    if caller is not None and not caller.by_cookie:
        return True
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin in {str(allowed).rstrip("/") for allowed in settings.MONAI_LABEL_CORS_ORIGINS}:
        return caller is None
    if site is not None:
        return site == "same-origin"
    if origin is not None:
        return urlsplit(origin).netloc == headers.get("host")
    return caller is None


def _is_navigation(headers: Headers) -> bool:
    """Whether a person waits for a page, not a script for data."""
    return headers.get("sec-fetch-mode", "navigate") == "navigate" and "text/html" in headers.get("accept", "")


def _to_sign_in(scope: Scope, path: str) -> Response:
    root = scope.get("root_path", "")
    query = scope.get("query_string", b"").decode("latin-1")
    target = quote(f"{root}{path}?{query}" if query else f"{root}{path}", safe="/")
    return RedirectResponse(f"{root}{SIGN_IN}?next={target}", 303, headers={"Cache-Control": "no-store"})


def _explain(status: int, detail: Any, headers: Any = None) -> Response:
    return JSONResponse({"detail": detail}, status, headers=headers)


def _explain_later(request: Request, error: Exception) -> Response:
    """Say to a stranger nothing of what is damaged, nor where it lies."""
    logger.error("%s", error)
    return _explain(503, _LATER, {"Retry-After": "60"})


def _explain_invalid(request: Request, error: Any) -> Response:
    """Say what is wrong without repeating it: it may be a patient's, or nothing that JSON can hold."""
    found = [{key: one[key] for key in ("type", "loc", "msg")} for one in error.errors()]
    return _explain(422, found)


def _with_headers(send: Send, path: str) -> Send:
    """Add what no answer should lack: a browser keeps nothing of patients, and loads nothing from elsewhere."""

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("X-Content-Type-Options", "nosniff")
            if not path.startswith(_CACHED):
                headers.setdefault("Cache-Control", "no-store")
            if path.startswith(_OF_OTHERS):
                headers["Content-Security-Policy"] = _RUNS_NOTHING
                if not headers.get("content-type", "application/json").startswith(_SHOWN):
                    headers.setdefault("Content-Disposition", "attachment")
            elif headers.get("content-type", "").startswith("text/html"):
                headers.setdefault("Content-Security-Policy", _POLICY)
        await send(message)

    return add
