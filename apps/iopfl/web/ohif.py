"""OHIF as MONAI Label ships it, with our addition to it, and without a request to any other host.

`static/ohif` is the addition: settings in place of the shipped ones, and modules that OHIF loads
because the settings name them, at their address among all our files (`routes.static_file`). What
ships stays as it is, but for references to fonts at Google.
"""

from __future__ import annotations

import mimetypes
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import FileResponse, RedirectResponse, Response
from monailabel.endpoints import ohif

from iopfl.access.roles import for_user

SHIPPED = Path(ohif.__file__).resolve().parent / "static" / "ohif"
CONFIG = Path(__file__).resolve().parent / "static" / "ohif" / "app-config.js"

_ELSEWHERE = re.compile(r"""<link[^>]*https://fonts\.[^>]*>|@import\s*(?:url\()?["']?https://fonts\.[^;]*;""")
"""What asks Google for fonts: a link, or a line of a style sheet. The browser's own serve as well."""
_NAMED_BY_CONTENT = re.compile(r"\.[0-9a-f]{20}\.js$|^[0-9a-f]{20}\.wasm$")
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}

router = APIRouter(prefix="/ohif", include_in_schema=False, dependencies=[Depends(for_user)])


@router.get("")
def start_page() -> RedirectResponse:
    return RedirectResponse("ohif/")


@router.get("/{path:path}")
def get_file(path: str) -> Response:
    """A file of OHIF, or our settings; the start page for OHIF's own addresses, 404 for the rest."""
    file = _find(path)
    kind = _TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    headers = {"Cache-Control": _caching(file)}
    if file.name in ("index.html", "app.bundle.css"):
        return Response(_without_fonts(file), media_type=kind, headers=headers)
    return FileResponse(file, media_type=kind, headers=headers)


def _find(path: str) -> Path:
    """Where a file lies.

    Raises:
        HTTPException: 404, there is none.
    """
    if path == CONFIG.name:
        return CONFIG
    if "\0" in path or not (file := (SHIPPED / path).resolve()).is_relative_to(SHIPPED):
        raise HTTPException(404, "no such file")
    if file.is_file():
        return file
    # A viewer's address such as /ohif/monai-label has no suffix; what has one is a file.
    if file.suffix and not file.is_dir():
        raise HTTPException(404, f"no file {path!r} in OHIF")
    return SHIPPED / "index.html"


def _caching(file: Path) -> str:
    """A name that is made of the content never means another; the rest is asked for again, and mostly is as before."""
    return "private, max-age=31536000, immutable" if _NAMED_BY_CONTENT.search(file.name) else "no-cache"


@cache
def _without_fonts(file: Path) -> str:
    return _ELSEWHERE.sub("", file.read_text(encoding="utf-8"))
