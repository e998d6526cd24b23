"""The proxy to the PACS, through which OHIF works, loses every query and waits for ever.

Defect: `endpoints/proxy.py:82` leaves out the query string, so each search of OHIF lists the whole
archive; it sets no timeout, passes all of the client's headers on with a POST, lets `..` climb
above the DICOMweb root, and without a PACS asks for the local folder as if it were a URL.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.
"""

from __future__ import annotations

from typing import Any

import requests
from fastapi import HTTPException, Request
from fastapi.responses import Response

from iopfl.compat._patching import once

CONNECT_SECONDS = 5.0

# Of one connection, not of the answer (RFC 9110, section 7.6.1).
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


@once
def apply() -> None:
    """Pass on the query, wait as long as `MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT` says, and say what failed."""
    from monailabel.config import settings
    from monailabel.endpoints import proxy

    original = proxy.proxy_dicom

    async def proxy_dicom(request: Request, op: str, path: str) -> Response:
        if "googleapis.com" in settings.MONAI_LABEL_STUDIES:
            return await original(request, op, path)  # it makes the token that Google wants
        url = _target(settings, op, path)
        posting = request.method == "POST"
        kept = ("accept", "content-type") if posting else ()
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        try:
            answer = requests.request(
                request.method,
                url,
                params=request.query_params.multi_items(),
                data=await request.body() if posting else None,
                headers={name: request.headers[name] for name in kept if name in request.headers},
                auth=(user, password) if user and password else None,
                timeout=(CONNECT_SECONDS, settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT),
                stream=True,
            )
            content = answer.raw.read()
        except (requests.RequestException, OSError) as error:
            reason = type(error).__name__
            raise HTTPException(502, f"the PACS does not answer ({reason}): is it running?") from error
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
        return Response(content, answer.status_code, headers)

    proxy.proxy_dicom = proxy_dicom


def _target(settings: Any, op: str, path: str) -> str:
    """Find the PACS's own address for one of the proxy's."""
    if not settings.MONAI_LABEL_STUDIES.startswith(("http://", "https://")):
        raise HTTPException(404, "this server has a folder of images, no PACS to pass this on to")
    if ".." in path.split("/"):
        raise HTTPException(400, "a DICOMweb path must not hold '..'")
    # Some versions of OHIF ask for metadata through QIDO.
    op = "wado" if op == "qido" and path.endswith("metadata") else op
    prefix = getattr(settings, f"MONAI_LABEL_{op.upper()}_PREFIX", None) if op else None
    return "/".join(filter(None, [settings.MONAI_LABEL_STUDIES.rstrip("/"), prefix, path]))
