"""With authentication on, no token is accepted; and what goes wrong with one is a 500.

Defect: `endpoints/user/auth.py:91` calls `jwt.decode` without `algorithms`, which PyJWT 2 refuses; the realm's
key is asked for on the event loop (`:38`), kept for ever, and its absence, or roles in another form, are a 500.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from iopfl.compat._patching import once

logger = logging.getLogger(__name__)

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
"""Asymmetric ones alone, as with another the realm's public key could sign; and of those, the realm's are RSA."""
_SECONDS_BETWEEN_FETCHES = 30.0


@once
def apply() -> None:
    """Check tokens anew, in FastAPI's threads."""
    from fastapi import Depends, Security
    from monailabel.config import settings
    from monailabel.endpoints.user import auth

    if not settings.MONAI_LABEL_AUTH_ENABLE:
        return
    keys = _RealmKey(settings.MONAI_LABEL_AUTH_REALM_URI, settings.MONAI_LABEL_AUTH_TIMEOUT)

    # A plain function: FastAPI calls it in a thread, where asking the realm keeps nobody waiting.
    def current_user(token: str = Depends(auth.oauth2_scheme)) -> Any:
        return _to_user(keys.decode(token))

    auth.get_current_user = current_user
    auth.RBAC.__call__.__defaults__ = (Security(current_user),)


class _RealmKey:
    """A realm's public key, asked for again when a signature does not fit: keys are rotated."""

    def __init__(self, realm: str, timeout: float) -> None:
        self._realm = realm
        self._timeout = timeout
        self._key: str | None = None
        self._fetched = -_SECONDS_BETWEEN_FETCHES
        self._lock = threading.Lock()

    def decode(self, token: str) -> dict[str, Any]:
        """A token's claims, once it was verified.

        Raises:
            HTTPException: 401, it is not valid; 503, the realm does not answer.
        """
        import jwt

        key = self._get()
        try:
            try:
                return self._verify(token, key)
            except jwt.InvalidSignatureError:
                renewed = self._get(instead_of=key)
                if renewed == key:
                    raise
                return self._verify(token, renewed)
        except jwt.ExpiredSignatureError as error:
            raise _refuse(401, "the token has expired: sign in again") from error
        except (jwt.PyJWTError, ValueError) as error:
            logger.info("a token was refused: %s", type(error).__name__)
            raise _refuse(401, "the token is not valid here: sign in again") from error

    def _verify(self, token: str, key: str) -> dict[str, Any]:
        import jwt

        claims = jwt.decode(token, key, algorithms=ALGORITHMS, options={"verify_aud": False, "require": ["exp"]})
        issuer = claims.get("iss")
        if issuer is not None and issuer != self._realm:
            raise jwt.InvalidIssuerError("of another realm")
        return claims

    def _get(self, *, instead_of: str | None = None) -> str:
        import requests

        with self._lock:
            recently = time.monotonic() - self._fetched < _SECONDS_BETWEEN_FETCHES
            if self._key is not None and (instead_of is None or self._key != instead_of or recently):
                return self._key
            try:
                response = requests.get(self._realm, timeout=self._timeout)
                response.raise_for_status()
                self._key = f"-----BEGIN PUBLIC KEY-----\n{response.json()['public_key']}\n-----END PUBLIC KEY-----"
                self._fetched = time.monotonic()
            except (requests.RequestException, ValueError, KeyError, TypeError) as error:
                if self._key is not None:
                    return self._key
                raise _refuse(
                    503, "the sign-in service does not answer: try again, or tell the administrator"
                ) from error
            return self._key


def _to_user(claims: Mapping[str, Any]) -> Any:
    """A token's user; claims of another form than expected give no roles."""
    from monailabel.config import settings
    from monailabel.endpoints.user.auth import User

    roles: Any = claims
    for part in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        roles = roles.get(part) if isinstance(roles, Mapping) else None
    roles = [role for role in roles if isinstance(role, str)] if isinstance(roles, list) else []

    def text(name: str) -> str | None:
        value = claims.get(name)
        return value if isinstance(value, str) else None

    return User(
        username=text(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME) or text("sub") or "unknown",
        email=text(settings.MONAI_LABEL_AUTH_TOKEN_EMAIL),
        name=text(settings.MONAI_LABEL_AUTH_TOKEN_NAME),
        roles=roles,
    )


def _refuse(status: int, detail: str) -> Exception:
    from fastapi import HTTPException

    return HTTPException(status, detail, headers={"WWW-Authenticate": "Bearer"} if status == 401 else None)
