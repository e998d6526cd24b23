"""Signing in and out: a page for browsers, and the routes that MONAI Label's clients use.

A browser gets a cookie that scripts cannot read and other sites cannot use; OHIF and our page
need nothing more, as they come from the same server. A program gets a token to send.
"""

from __future__ import annotations

import logging
import math
import secrets
import string
from html import escape
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.security import OAuth2PasswordRequestForm
from monailabel.config import settings
from monailabel.endpoints.user.auth import User, get_current_user

from iopfl.access.auditing import ABOUT
from iopfl.access.identity import Access, to_local_user
from iopfl.access.realm import refuse
from iopfl.access.sessions import DEVICE_SECONDS, FLOW_SECONDS, SESSION_SECONDS

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
_FILES = {"signin.css": "text/css", "signin.js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_FLOW_COOKIE = "iopfl_signin"

router = APIRouter()


def find_access(request: Request) -> Access:
    """Who may use this server."""
    return request.app.state.access


Allowed = Annotated[Access, Depends(find_access)]


# ---- programs ----


@router.get("/auth/", tags=["Auth"], summary="Whether this server asks for a sign-in")
def describe(access: Allowed) -> Response:
    is_oidc = access.service is not None
    return JSONResponse(
        {
            "enabled": access.mode != "off",
            "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID if is_oidc else "",
            "realm": settings.MONAI_LABEL_AUTH_REALM_URI if is_oidc else "",
        }
    )


@router.post("/auth/token", tags=["Auth"], summary="Sign in with name and password, and get a token to send")
def give_token(request: Request, form: Annotated[OAuth2PasswordRequestForm, Depends()], access: Allowed) -> Response:
    if access.service is not None:
        _admit(request, access, form.username)
        request.scope[ABOUT] = {"user": "unknown"}
        tokens = access.service.exchange_password(form.username, form.password)
        request.scope[ABOUT] = {"user": form.username}
        access.throttle.forgive(_address(request), form.username, _device(request, access, form.username))
        return JSONResponse(tokens, headers={"Cache-Control": "no-store"})
    token = _sign_in(request, access, form.username, form.password)
    return JSONResponse(
        {"access_token": token, "token_type": "bearer", "expires_in": SESSION_SECONDS},
        headers={"Cache-Control": "no-store"},
    )


@router.get("/auth/token/valid", tags=["Auth"], summary="Whether a token still counts, and whose it is")
def check_token(user: Annotated[User, Depends(get_current_user)]) -> User:
    return user


@router.get("/iopfl/me", tags=["Auth"], summary="Who is signed in, and may do what")
def who_am_i(request: Request, access: Allowed) -> Response:
    user = request.scope.get("user")
    values: dict[str, Any] = {"authentication": access.mode, "name": "", "roles": []}
    if user is not None:
        values |= {"name": user.username, "roles": user.roles}
    return JSONResponse(values, headers={"Cache-Control": "no-store"})


@router.get("/iopfl/health", include_in_schema=False)
def health() -> dict[str, str]:
    """For what watches over servers; it tells nothing more."""
    return {"status": "ok"}


# ---- browsers ----


@router.get("/iopfl/signin", include_in_schema=False)
def show_page(request: Request, access: Allowed, next: str = "") -> Response:
    return _page(request, access, next)


@router.get("/iopfl/signin/service", include_in_schema=False)
def go_to_service(request: Request, access: Allowed, next: str = "") -> Response:
    """Send a browser to the hospital's sign-in page."""
    if access.service is None:
        raise HTTPException(404, "this server has users of its own: sign in at iopfl/signin")
    url, flow = access.service.begin(_callback(request))
    response = RedirectResponse(url, 303, headers=_HEADERS)
    token = access.sessions.make("flow", FLOW_SECONDS, {**flow, "next": _local(request, next)})
    # Lax, unlike the session's: the way back is a link from another site.
    _set_cookie(request, response, _FLOW_COOKIE, token, FLOW_SECONDS, "lax")
    return response


@router.get("/iopfl/signin/callback", include_in_schema=False)
def come_back(request: Request, access: Allowed, code: str = "", state: str = "") -> Response:
    """Take a browser in that comes back from the hospital's sign-in page."""
    if access.service is None:
        raise HTTPException(404, "this server has users of its own: sign in at iopfl/signin")
    flow = access.sessions.read("flow", request.cookies.get(_FLOW_COOKIE, ""))
    if flow is None or not code or not secrets.compare_digest(state.encode(), flow["state"].encode()):
        return _page(request, access, "", "That took too long, or was cancelled. Please sign in again.", 401)
    try:
        _admit(request, access, None)  # each try asks the hospital's service
        user = access.service.finish(_callback(request), code, flow)
    except HTTPException as error:
        return _page(request, access, flow["next"], f"Not signed in: {error.detail}.", error.status_code, error.headers)
    access.throttle.forgive(_address(request), None)
    if settings.MONAI_LABEL_AUTH_ROLE_USER not in user.roles:
        request.scope[ABOUT] = {"user": user.username}
        problem = f"The account {user.username} has no role here. Please ask the administrator for one."
        return _page(request, access, flow["next"], problem, 403)
    request.scope["user"] = user
    # A page, not a redirect: on one that began at another site the browser would not send the new cookie.
    target = escape(flow["next"])
    text = f'<!doctype html><meta http-equiv="refresh" content="0;url={target}"><a href="{target}">Continue</a>'
    response = HTMLResponse(text, headers=_HEADERS)
    _set_cookie(request, response, access.sessions.cookie, access.make_session(user), SESSION_SECONDS, "strict")
    response.delete_cookie(_FLOW_COOKIE, path=_root(request) or "/")
    return response


@router.get("/iopfl/signin/{name}", include_in_schema=False)
def static_file(name: str) -> FileResponse:
    if name not in _FILES:
        raise HTTPException(404, "no such file")
    return FileResponse(STATIC / name, media_type=_FILES[name], headers={"Cache-Control": "no-cache"})


@router.post("/iopfl/signin", include_in_schema=False)
def take_in(
    request: Request,
    access: Allowed,
    username: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "",
) -> Response:
    if access.mode != "local":
        return RedirectResponse(_local(request, next), 303)
    try:
        token = _sign_in(request, access, username, password)
    except HTTPException as error:
        return _page(request, access, next, f"{error.detail}.", error.status_code, error.headers)
    response = RedirectResponse(_local(request, next), 303, headers=_HEADERS)
    _set_cookie(request, response, access.sessions.cookie, token, SESSION_SECONDS, "strict")
    if not _device(request, access, username):
        device = access.sessions.make("device", DEVICE_SECONDS, {"sub": username})
        _set_cookie(request, response, _device_cookie(access), device, DEVICE_SECONDS, "strict")
    return response


@router.post("/iopfl/signout", include_in_schema=False)
def sign_out(request: Request, access: Allowed) -> Response:
    """End the session, here and for whoever may have copied its cookie or its token."""
    if access.mode == "off":
        return RedirectResponse(f"{_root(request)}/", 303)
    try:
        access.end(request.headers, request.cookies)
    except OSError as error:
        raise HTTPException(507, "the disk is full: you are still signed in, close the browser") from error
    if not request.cookies:
        return Response(status_code=204)
    response = RedirectResponse(f"{_root(request)}/iopfl/signin", 303, headers=_HEADERS)
    response.delete_cookie(access.sessions.cookie, path=_root(request) or "/")
    return response


# ---- both ----


def _sign_in(request: Request, access: Access, name: str, password: str) -> str:
    """A session's token for a user of this server.

    Raises:
        HTTPException: 400, there is nothing to sign in to; 401, wrong; 429, too often.
    """
    if access.mode == "off":
        raise HTTPException(400, "this server asks for no sign-in")
    _admit(request, access, name)
    account = access.users.check_password(name, password)
    if account is None:
        # What was typed may be a password in the wrong field: a name is recorded if there is such a user.
        request.scope[ABOUT] = {"user": name if access.users.find(name) else "unknown"}
        raise refuse(401, "User name or password is wrong")
    access.throttle.forgive(_address(request), name, _device(request, access, name))
    user = to_local_user(account)
    request.scope["user"] = user
    return access.make_session(user, account.generation)


def _admit(request: Request, access: Access, name: str | None) -> None:
    device = _device(request, access, name)
    seconds = math.ceil(access.throttle.admit(_address(request), name, device))
    if seconds:
        detail = f"Too many attempts to sign in: wait {seconds} seconds"
        raise HTTPException(429, detail, headers={"Retry-After": str(seconds)})


def _device(request: Request, access: Access, name: str | None) -> str:
    """The browser, where it is one in which that user has signed in before; "" = unknown."""
    known = access.sessions.read("device", request.cookies.get(_device_cookie(access), ""))
    return known["jti"] if known is not None and known["sub"] == name else ""


def _device_cookie(access: Access) -> str:
    return f"{access.sessions.cookie}_device"


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _root(request: Request) -> str:
    return request.scope.get("root_path", "")


def _local(request: Request, target: str) -> str:
    """Where to go after signing in: a path of this server, whatever was asked for."""
    home = f"{_root(request)}/"
    parts = urlsplit(target) if target.isprintable() and "\\" not in target else None
    if parts is None or parts.scheme or parts.netloc or not target.startswith(home) or target.startswith("//"):
        return home
    return quote(target, safe="/?&=%:;,+@!$'()*~#[]")


def _callback(request: Request) -> str:
    return str(request.url_for("come_back"))


def _set_cookie(request: Request, response: Response, name: str, value: str, seconds: int, same_site: Any) -> None:
    response.set_cookie(
        name,
        value,
        max_age=seconds,
        path=_root(request) or "/",
        httponly=True,
        secure=request.url.scheme == "https",
        samesite=same_site,
    )


def _page(
    request: Request, access: Access, next: str, problem: str = "", status: int = 200, headers: Any = None
) -> Response:
    template = string.Template((STATIC / "signin.html").read_text(encoding="utf-8"))
    target = _local(request, next)
    values = {
        "root": escape(_root(request)),
        "next": escape(target),
        "asked": escape(quote(target, safe="")),
        "problem": escape(problem),
        "mode": access.mode,
    }
    return HTMLResponse(template.substitute(values), status, headers={**_HEADERS, **(headers or {})})
