"""The hospital's sign-in service (OpenID Connect, e.g. Keycloak): its keys, and what its tokens say.

A token is verified with the keys that the service publishes (JWKS), or with the one key that a
Keycloak realm shows at its own address. MONAI Label's variables `MONAI_LABEL_AUTH_*` say which
claims hold name and roles, and what the roles are called there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import requests
from fastapi import HTTPException
from monailabel.config import settings
from monailabel.endpoints.user.auth import User

from iopfl.access.roles import implied_roles

logger = logging.getLogger(__name__)

ALGORITHMS = {
    "RSA": ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
    "EC": ["ES256", "ES384", "ES512"],
    "OKP": ["EdDSA"],
}
"""By kind of key. Asymmetric ones alone, as with another the service's public key could sign."""

LEEWAY_SECONDS = 10.0
"""By which the clocks of two machines may differ."""
_SECONDS_BETWEEN_FETCHES = 30.0
_SECONDS_AFTER_FAILURE = 5.0


class Realm:
    """A sign-in service, as far as tokens go.

    Args:
        issuer: its address, as it stands in its tokens.
        timeout: seconds to wait for it.
        ca: PEM file of the authority that signed its certificate; None = the public ones count.
        proxy: URL of the proxy that leads there; "" = none, whatever the environment says.
    """

    def __init__(self, issuer: str, timeout: float, *, ca: Path | None = None, proxy: str = "") -> None:
        self.issuer = issuer.rstrip("/")
        self.timeout = timeout
        self._ca, self._proxy = ca, proxy
        self._configuration: dict[str, Any] | None = None
        self._keys: dict[str | None, jwt.PyJWK | str] = {}
        self._fetched = self._failed = float("-inf")
        self._lock = threading.Lock()

    def configuration(self) -> dict[str, Any]:
        """What the service says about itself; {} where it says nothing.

        Raises:
            HTTPException: 503, it does not answer.
        """
        with self._lock:
            if self._configuration is None:
                self._attempt(self._discover)
            return self._configuration or {}

    def decode(self, token: str, **checks: Any) -> dict[str, Any]:
        """A token's claims, once it was verified.

        Args:
            token: a JWT.
            checks: more of what PyJWT checks, such as `audience`.

        Raises:
            HTTPException: 401, it is not valid; 503, the service does not answer.
        """
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            keys = self._find_keys(key_id)
            try:
                return self._verify(token, keys, checks)
            except jwt.InvalidSignatureError:
                renewed = self._find_keys(key_id, instead_of=keys)
                if renewed == keys:
                    raise
                return self._verify(token, renewed, checks)
        except jwt.ExpiredSignatureError as error:
            raise refuse(401, "the token has expired: sign in again") from error
        except (jwt.PyJWTError, ValueError) as error:
            logger.info("a token was refused: %s", type(error).__name__)
            raise refuse(401, "the token is not valid here: sign in again") from error

    def get(self, url: str, **options: Any) -> dict[str, Any]:
        """Ask the service for a JSON object.

        Raises:
            requests.RequestException, ValueError: there is no answer, or another one.
        """
        with requests.Session() as session:
            self.bind(session)
            response = session.get(url, timeout=self.timeout, **options)
        response.raise_for_status()
        values = response.json()
        if not isinstance(values, dict):
            raise ValueError("expected a JSON object")
        return values

    def bind(self, session: requests.Session) -> None:
        """Have a session speak with the service alone: what it says decides who gets in, and it is told secrets.

        Neither a proxy nor a `.netrc` of the environment is used, and no redirect followed.
        """
        session.trust_env = False
        session.max_redirects = 0
        session.verify = str(self._ca) if self._ca else True
        session.proxies = {"http": self._proxy, "https": self._proxy} if self._proxy else {}

    def _verify(self, token: str, keys: list[jwt.PyJWK | str], checks: Mapping[str, Any]) -> dict[str, Any]:
        for key in keys:
            kind, value = ("RSA", key) if isinstance(key, str) else (key.key_type or "", key.key)
            try:
                claims = jwt.decode(
                    token,
                    value,
                    ALGORITHMS.get(kind, []),
                    options={"require": ["exp"], "verify_aud": "audience" in checks},
                    leeway=LEEWAY_SECONDS,
                    **checks,
                )
            except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
                continue
            if str(claims.get("iss", self.issuer)).rstrip("/") != self.issuer:
                raise jwt.InvalidIssuerError("of another realm")
            return claims
        raise jwt.InvalidSignatureError("by none of the realm's keys")

    def _find_keys(
        self, key_id: str | None, *, instead_of: list[jwt.PyJWK | str] | None = None
    ) -> list[jwt.PyJWK | str]:
        """Keys that may have signed: the one of that id, the realm's only one, or, for no id, all."""
        with self._lock:
            found = self._of_id(key_id)
            is_stale = not found if instead_of is None else found == instead_of
            if is_stale and time.monotonic() - self._fetched >= _SECONDS_BETWEEN_FETCHES:
                self._attempt(self._fetch_keys, may_fail=bool(self._keys))
                found = self._of_id(key_id)
            return found

    def _of_id(self, key_id: str | None) -> list[jwt.PyJWK | str]:
        if key_id in self._keys:
            return [self._keys[key_id]]
        return list(self._keys.values()) if key_id is None else [self._keys[None]] if None in self._keys else []

    def _attempt(self, fetch: Any, *, may_fail: bool = False) -> None:
        """Ask the service, and after a failure not again for a while: every request would wait for it."""
        unavailable = refuse(503, "the sign-in service does not answer: try again, or tell the administrator")
        if time.monotonic() - self._failed >= _SECONDS_AFTER_FAILURE:
            try:
                fetch()
                return
            except (requests.RequestException, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
                logger.warning("the sign-in service %s does not answer as expected: %s", self.issuer, error)
                self._failed = time.monotonic()
        if not may_fail:
            raise unavailable

    def _discover(self) -> None:
        try:
            found = self.get(f"{self.issuer}/.well-known/openid-configuration")
        except requests.HTTPError:
            found = {}  # a realm that shows its key and nothing else
        if found.get("issuer", self.issuer).rstrip("/") != self.issuer:
            raise ValueError(f"it calls itself {found['issuer']}")
        self._configuration = found

    def _fetch_keys(self) -> None:
        if self._configuration is None:
            self._discover()
        address = (self._configuration or {}).get("jwks_uri")
        if address:
            keys = jwt.PyJWKSet.from_dict(self.get(address)).keys
            self._keys = {key.key_id: key for key in keys if key.public_key_use in (None, "sig")}
        else:
            text = self.get(self.issuer)["public_key"]
            self._keys = {None: f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----"}
        self._fetched = time.monotonic()


def find_roles(claims: Mapping[str, Any]) -> list[str] | None:
    """The roles in a token's claims; None where there are none, or in another form than expected."""
    found: Any = claims
    for part in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return [role for role in found if isinstance(role, str)] if isinstance(found, list) else None


def to_user(claims: Mapping[str, Any], roles: list[str] | None = None) -> User:
    """A token's user, with its roles or those given."""

    def text(name: str) -> str | None:
        value = claims.get(name)
        return value if isinstance(value, str) else None

    return User(
        username=text(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME) or text("sub") or "unknown",
        email=text(settings.MONAI_LABEL_AUTH_TOKEN_EMAIL),
        name=text(settings.MONAI_LABEL_AUTH_TOKEN_NAME),
        roles=implied_roles(roles if roles is not None else find_roles(claims) or []),
    )


def refuse(status: int, detail: str) -> HTTPException:
    """The answer to a request that cannot be let in, now or at all."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "5"}}
    return HTTPException(status, detail, headers=headers.get(status))
