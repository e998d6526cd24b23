"""How a request must come: by a name that this server has, and no longer than it can use."""

from __future__ import annotations

import ipaddress
import logging
import socket
from urllib.parse import urlsplit

import anyio
from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from iopfl.access.settings import PROXIES_VARIABLE, AccessSettings
from iopfl.base.names import find_path

logger = logging.getLogger(__name__)

MEGABYTE = 2**20
_MAX_TEXT_MB = 2
"""Parameters and lists of ids, never images. Their routes read them as a whole, whatever they call themselves."""
_FILES = ("/datastore/", "/infer/", "/session/", "/proxy/dicom/stow/")
"""Where images and labels come, in several parts: these are streamed to disk or to the PACS."""
_LINGER_SECONDS = 5.0
_OWN_LIMIT = "/iopfl/federations/"
"""Weights: these routes know how long theirs are."""


class Limits:
    """ASGI middleware, before all others.

    A page elsewhere may have its own name lead to this server's address, and so read from a
    clinician's browser what is here (DNS rebinding). Where nobody signs in, a name that is not ours is refused.
    """

    def __init__(self, app: ASGIApp, settings: AccessSettings) -> None:
        self._app = app
        self._max_upload_mb = settings.max_upload_mb
        self._may_have_proxy = bool(settings.proxies)
        own = {"localhost", socket.gethostname().lower()}
        self._hosts = None if settings.hosts is None else own | {host.lower() for host in settings.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        self._notice_proxy(headers)
        host = headers.get("host", "")
        if not self._is_ours(host):
            detail = f"this server is not known as {host}: call it by its address, or start it with --allow-host"
            await JSONResponse({"detail": detail}, 421)(scope, receive, send)
            return
        limit = self._limit(find_path(scope), headers.get("content-type", ""))
        length = headers.get("content-length", "")
        if limit is not None and length.isdecimal() and int(length) > limit * MEGABYTE:
            if "expect" not in headers:  # who asks before sending has sent nothing yet
                await _discard(receive)
            refusal = JSONResponse({"detail": self._too_long(limit)}, 413, headers={"Connection": "close"})
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive if limit is None else self._counting(receive, limit), send)

    def _notice_proxy(self, headers: Headers) -> None:
        """Say once that a proxy is not believed: its visitors would share one address, and OIDC lead to `http://`."""
        if self._may_have_proxy or not ("x-forwarded-for" in headers or "x-forwarded-proto" in headers):
            return
        self._may_have_proxy = True
        logger.warning(
            "X-Forwarded-For and X-Forwarded-Proto are not believed: if they come from a reverse proxy of yours, "
            "start this server with its address in %s",
            PROXIES_VARIABLE,
        )

    def _is_ours(self, host: str) -> bool:
        """No name at all is no browser's; an address is nobody's to rebind."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if self._hosts is None or not host or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _limit(self, path: str, content_type: str) -> int | None:
        """Most that a request may bring, in MB; None = its route says."""
        if path.startswith(_OWN_LIMIT):
            return None
        brings_files = path.startswith(_FILES) and content_type.lower().startswith("multipart/")
        return self._max_upload_mb if brings_files else _MAX_TEXT_MB

    def _counting(self, receive: Receive, limit: int) -> Receive:
        """Read a body as long as it is short enough: who does not say how long it is may still be sending."""
        size = 0

        async def read() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit * MEGABYTE:
                if message.get("more_body"):
                    await _discard(receive)
                raise HTTPException(413, self._too_long(limit), headers={"Connection": "close"})
            return message

        return read

    def _too_long(self, limit: int) -> str:
        hint = ": ask the administrator for more (--max-upload-mb)" if limit == self._max_upload_mb else ""
        return f"expected at most {limit} MB here{hint}"


async def _discard(receive: Receive) -> None:
    """Read on for a while: who is still sending when the connection closes may never see the answer."""
    with anyio.move_on_after(_LINGER_SECONDS):
        while (await receive()).get("more_body"):
            pass
