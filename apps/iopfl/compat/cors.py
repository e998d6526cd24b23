"""Any web page that a clinician opens may read and write the label server.

Defect: `app.py:42` allows every origin, with credentials, when none is configured.
OHIF and our own pages come from the server itself and need no such permission.
Upstream: not reported; pull request 222 asked for it.
"""

from __future__ import annotations

from fastapi.middleware.cors import CORSMiddleware

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Allow the origins that `MONAI_LABEL_CORS_ORIGINS` names, and by default none."""
    from monailabel.app import app
    from monailabel.config import settings

    if not settings.MONAI_LABEL_CORS_ORIGINS:
        app.user_middleware[:] = [m for m in app.user_middleware if m.cls is not CORSMiddleware]
