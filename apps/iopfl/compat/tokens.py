"""With authentication on, no token is accepted; and what goes wrong with one is a 500.

Defect: `endpoints/user/auth.py:91` calls `jwt.decode` without `algorithms`, which PyJWT 2 refuses; the realm's
key is asked for on the event loop (`:38`), kept for ever, and its absence, or roles in another form, are a 500.
`endpoints/login.py:56` makes a 500 of a wrong password, and there are no users but a realm's.
Upstream: not reported.
"""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException, Request, Security
from fastapi.security import OAuth2PasswordBearer

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Take as user whom `access.gate` found before any route was asked, and leave signing in to `access.signin`."""
    from monailabel.config import settings
    from monailabel.endpoints.user import auth

    if settings.MONAI_LABEL_AUTH_ENABLE:
        # Asks for nothing itself, as a browser has a cookie instead: it is there for the description of the API.
        described = OAuth2PasswordBearer(tokenUrl="auth/token", auto_error=False)

        def current_user(request: Request, _: str | None = Security(described)) -> Any:
            if "user" not in request.scope:
                raise HTTPException(
                    401, "not signed in: sign in, or send a token", headers={"WWW-Authenticate": "Bearer"}
                )
            return request.scope["user"]

        auth.get_current_user = current_user
        auth.RBAC.__call__.__defaults__ = (Security(current_user),)

    from monailabel.endpoints import login

    login.router.routes.clear()
