"""The PACS's DICOMweb through this server: OHIF gets all from one place, and no browser holds the PACS's password.

Passed on are searches (QIDO-RS), retrievals (WADO-RS) and storing (STOW-RS; PS3.18, 10), and nothing
else that the PACS may answer to. A series of gigabytes needs no memory here: answers stream, what is stored is kept
on the disk until it was looked through.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any
from urllib.parse import quote, urlencode
from weakref import WeakKeyDictionary

import httpx
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from monailabel.config import settings
from monailabel.interfaces.utils.app import app_instance
from starlette.types import Receive, Scope, Send

from iopfl.access.roles import for_annotator, for_user
from iopfl.base import uids
from iopfl.pacs.access import PACSAccess
from iopfl.web.stow import Upload, check_places

logger = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs addresses, in which OHIF asks for names and patient ids

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 900.0
"""For one request and its answer: a PACS that trickles shall not hold a connection for ever."""

_MAX_CONNECTIONS = 32
_UID = uids.PATTERN
_OBJECT = rf"studies/{_UID}(/series/{_UID}(/instances/{_UID})?)?"
_SEARCH = re.compile(rf"(studies/{_UID}/(series/{_UID}/)?)?(studies|series|instances)")
_METADATA = re.compile(rf"{_OBJECT}/metadata")
_RETRIEVE = re.compile(
    rf"{_OBJECT}(/frames/[0-9,]+)?(/(metadata|rendered|thumbnail|pixeldata|bulk(data)?(/[0-9A-Za-z_/-]+)?))?"
)
_STORE = re.compile(rf"studies(/{_UID})?")
_MEDIA_TYPES = re.compile(
    r"application/(dicom|dicom\+json|dicom\+xml|json|octet-stream)|multipart/related|image/(?!svg)[a-z0-9.-]+"
    r"|video/[a-z0-9.-]+"
)
"""What DICOMweb answers with (PS3.18, 8.7.3 and 8.7.4), less pages and texts, which a browser might run as ours."""
_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Content-Disposition": "attachment",
}
"""Whatever the PACS sends: opened by itself, it is a file to keep, and runs nothing."""
_SENT = ("accept", "content-type", "content-length")
_KEPT = ("content-type", "content-length", "warning", "retry-after")
_REFUSED = (401, 403, 407)
_MAX_FOUND = 2**22
"""Bytes of a search's answer that is read here."""

router = APIRouter(prefix="/proxy/dicom", include_in_schema=False)
_being_stored: set[str] = set()
"""SOP Instance UIDs on their way to the PACS."""
_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[PACSAccess, httpx.AsyncClient]] = WeakKeyDictionary()


@router.get("/qido/{path:path}", dependencies=[Depends(for_user)])
async def search(request: Request, path: str) -> Response:
    """Search for studies, series or instances."""
    if _METADATA.fullmatch(path):  # some versions of OHIF ask for them here
        return await _pass_on(request, settings.MONAI_LABEL_WADO_PREFIX, path)
    _check(_SEARCH, path, "searched for")
    return await _pass_on(request, settings.MONAI_LABEL_QIDO_PREFIX, path)


@router.get("/wado/{path:path}", dependencies=[Depends(for_user)])
async def retrieve(request: Request, path: str) -> Response:
    """Retrieve instances, frames, metadata or bulk data."""
    _check(_RETRIEVE, path, "retrieved")
    return await _pass_on(request, settings.MONAI_LABEL_WADO_PREFIX, path)


@router.post("/stow/{path:path}", dependencies=[Depends(for_annotator)])
async def store(request: Request, path: str) -> Response:
    """Store segmentations, such as one that was exported in OHIF; nothing else (`stow`)."""
    _check(_STORE, path, "stored")
    _find_access()
    upload = Upload()
    try:
        await upload.receive(request)
        with _alone({part.instance for part in upload.parts}):
            await check_places(upload.parts, path.partition("/")[2], _search)
            return await _pass_on(request, settings.MONAI_LABEL_STOW_PREFIX, path, upload)
    finally:
        upload.close()


@contextmanager
def _alone(instances: set[str]) -> Iterator[None]:
    """Let nobody else store these until the PACS has answered: it cannot say yet that it has them.

    Raises:
        HTTPException: 409, another request is storing one of them.
    """
    if instances & _being_stored:
        raise HTTPException(409, "this instance is being stored already, and stays as it is: export it anew")
    _being_stored.update(instances)
    try:
        yield
    finally:
        _being_stored.difference_update(instances)


def _check(expected: re.Pattern[str], path: str, what: str) -> None:
    """Refuse with 404 what is no DICOMweb path of this kind."""
    if not expected.fullmatch(path):
        raise HTTPException(404, f"nothing is {what} there: expected a path of DICOMweb, such as studies")


async def _search(path: str, query: dict[str, str]) -> list[dict[str, Any]]:
    """Search in the PACS; empty where it knows no such search, as some do not over all studies.

    Raises:
        HTTPException: 502, it does not answer, or not to this server.
    """
    access = _find_access()
    url = "/".join(filter(None, [access.url.rstrip("/"), settings.MONAI_LABEL_QIDO_PREFIX, path]))
    headers = {"accept": "application/dicom+json", **access.headers()}
    deadline = asyncio.get_running_loop().time() + TOTAL_SECONDS
    try:
        async with (
            asyncio.timeout_at(deadline),
            _client(access).stream("GET", url, params={"limit": "10", **query}, headers=headers) as answer,
        ):
            if answer.status_code in _REFUSED or answer.is_redirect or answer.is_server_error:
                raise HTTPException(502, f"the PACS refused this server's search with status {answer.status_code}")
            content = b""
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > _MAX_FOUND:
                    raise HTTPException(502, "the PACS answers a search for one object with megabytes")
    except (httpx.HTTPError, TimeoutError) as error:
        raise HTTPException(502, f"the PACS does not answer ({type(error).__name__}): is it running?") from error
    try:
        found = json.loads(content) if answer.is_success and content else []
    except ValueError as error:
        raise HTTPException(502, "expected DICOM JSON of the PACS, it answers with something else") from error
    return found if isinstance(found, list) else []


async def _pass_on(request: Request, prefix: str | None, path: str, upload: Upload | None = None) -> Response:
    """Send a request to the PACS, with an upload if it has one, and its answer back as it comes.

    Raises:
        HTTPException: 404, there is no PACS; 502, it does not answer, or not to this server.
    """
    access = _find_access()
    root = access.url.rstrip("/")
    sent = {name: request.headers[name] for name in _SENT if name in request.headers}
    # Not compressed, so that addresses in it can be read.
    sent |= {"accept-encoding": "identity", **access.headers(), **(upload.headers() if upload else {})}
    deadline = asyncio.get_running_loop().time() + TOTAL_SECONDS
    outgoing = _client(access).build_request(
        request.method,
        httpx.URL("/".join(filter(None, [root, prefix, path])), query=_encode_query(request).encode()),
        headers=sent,
        content=upload.stream() if upload else None,
    )
    try:
        async with asyncio.timeout_at(deadline):
            answer = await _client(access).send(outgoing, stream=True)
    except (httpx.HTTPError, TimeoutError) as error:
        reason = type(error).__name__
        raise HTTPException(502, f"the PACS does not answer ({reason}): is it running?") from error
    if answer.status_code in _REFUSED:  # of this server, not of the person, whom a 401 would send to sign in
        await answer.aclose()
        raise HTTPException(502, f"the PACS refused this server with status {answer.status_code}: see its credentials")
    if (refusal := _refuse(answer)) is not None:
        await answer.aclose()
        return refusal
    kept = {name: answer.headers[name] for name in _KEPT if name in answer.headers} | _HEADERS
    kept.setdefault("content-type", "application/octet-stream")
    body = _stream(answer, deadline)
    if "json" in kept["content-type"]:
        kept.pop("content-length", None)
        body = _replace(body, root.encode(), b"/proxy/dicom/wado")
    return _Passed(answer, body, kept)


def _refuse(answer: httpx.Response) -> Response | None:
    """What is said in place of an answer that is not DICOMweb's; None = it is passed on.

    A redirection would lead a browser to wherever the PACS says, or this server with its password.
    """
    status = answer.status_code
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if answer.is_success or answer.is_error:
        if not kind or _MEDIA_TYPES.fullmatch(kind):
            return None
        if answer.is_error:
            return JSONResponse({"detail": f"the PACS answers with status {status}"}, status, headers=_HEADERS)
    detail = (
        f"expected DICOMweb of the PACS, it answers with status {status} and {kind or 'no media type'}: "
        "correct the address in --studies"
    )
    return JSONResponse({"detail": detail}, 502, headers=_HEADERS)


class _Passed(StreamingResponse):
    """An answer of the PACS; its connection is given back however it ends, also before a first piece was asked for."""

    def __init__(self, answer: httpx.Response, body: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(body, answer.status_code, headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answer.aclose()


def _find_access() -> PACSAccess:
    """The PACS and how to sign in there.

    Raises:
        HTTPException: 404, there is none.
    """
    if not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
        raise HTTPException(404, "this server has a folder of images, no PACS to pass this on to")
    models = getattr(app_instance(), "models", None)  # of another app than ours, MONAI Label's own settings count
    known = {"credentials": models.settings.pacs_credentials, "ca": models.settings.pacs_ca} if models else {}
    return PACSAccess(settings.MONAI_LABEL_STUDIES, **known)


def _client(access: PACSAccess) -> httpx.AsyncClient:
    """A pool of connections, which httpx binds to an event loop; a server has one."""
    loop = asyncio.get_running_loop()
    kept = _pools.get(loop)
    if kept is None or kept[0] != access:
        seconds = settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT
        client = httpx.AsyncClient(
            verify=ssl.create_default_context(cafile=access.ca) if access.ca else True,
            timeout=httpx.Timeout(seconds, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # one person's would go with another's request
            follow_redirects=False,
            trust_env=False,  # neither a web proxy nor a .netrc: the PACS is in the house
        )
        kept = _pools[loop] = (access, client)
    return kept[1]


def _encode_query(request: Request) -> str:
    """The query, with no more percent signs than it needs: Orthanc's plugin looks at values before it decodes them.

    So names with `^`, wildcards and lists of fields are found there as a browser sends them; a space is not.
    """
    return urlencode(request.query_params.multi_items(), safe="*^,?:/", quote_via=quote)


async def _stream(answer: httpx.Response, deadline: float) -> AsyncIterator[bytes]:
    """The body, piece by piece. Once begun, an answer can fail only by breaking off, which an error here does."""
    try:
        async for piece in answer.aiter_raw():
            if asyncio.get_running_loop().time() > deadline:
                raise httpx.ReadTimeout(f"an answer of the PACS took longer than {TOTAL_SECONDS:.0f} s")
            yield piece
    except httpx.HTTPError as error:
        logger.warning("an answer of the PACS broke off: %s", type(error).__name__)
        raise


async def _replace(pieces: AsyncIterator[bytes], old: bytes, new: bytes) -> AsyncIterator[bytes]:
    """Replace a text in a stream, also where two pieces share it: the PACS names its own address for bulk data."""
    rest = b""
    async for piece in pieces:
        text = (rest + piece).replace(old, new)
        keep = len(text) - (len(old) - 1) if len(text) >= len(old) else 0
        yield text[:keep]
        rest = text[keep:]
    yield rest
