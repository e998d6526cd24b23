"""Signing in at the hospital's service: a browser by the authorization code flow, a program by a password.

Source: OpenID Connect Core 1.0, section 3.1, with PKCE (RFC 7636), `state` against forged
returns and `nonce` against a token that was made for somebody else.
"""

from __future__ import annotations

import logging
import secrets
from typing import Any

import requests
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session
from fastapi import HTTPException
from monailabel.endpoints.user.auth import User

from iopfl.access.realm import Realm, find_roles, refuse, to_user

logger = logging.getLogger(__name__)

_SCOPE = "openid profile email"
_GIVEN_BACK = ("access_token", "token_type", "expires_in", "refresh_token", "refresh_expires_in", "scope")


class SignInService:
    """A sign-in service that this server is registered with.

    Args:
        realm: its keys and addresses.
        client: the name that this server is registered by.
        secret: what it proves that with; "" = it is a public client.
    """

    def __init__(self, realm: Realm, *, client: str, secret: str = "") -> None:
        self.realm = realm
        self.client = client
        self._secret = secret

    def begin(self, callback: str) -> tuple[str, dict[str, str]]:
        """Begin to sign a browser in.

        Returns:
            The service's page to send it to, and what `finish` needs to know.
        """
        flow = {"state": secrets.token_urlsafe(24), "nonce": secrets.token_urlsafe(24)}
        flow["verifier"] = secrets.token_urlsafe(48)
        with self._session(callback) as session:
            url, _ = session.create_authorization_url(
                self._endpoint("authorization_endpoint"),
                state=flow["state"],
                nonce=flow["nonce"],
                code_verifier=flow["verifier"],
            )
        return url, flow

    def finish(self, callback: str, code: str, flow: dict[str, str]) -> User:
        """Exchange the code that the browser brought back for a user.

        Raises:
            HTTPException: 401, the service or its token is not what it should be; 503, it does not answer.
        """
        endpoint = self._endpoint("token_endpoint")
        with self._session(callback) as session:
            tokens = _ask(lambda: session.fetch_token(endpoint, code=code, code_verifier=flow["verifier"]))
        claims = self.realm.decode(str(tokens.get("id_token")), audience=self.client, issuer=self._issuer())
        if not secrets.compare_digest(str(claims.get("nonce", "")), flow["nonce"]):
            raise refuse(401, "the sign-in service answered for another sign-in: try again")
        if isinstance(claims["aud"], list) and claims.get("azp", self.client) != self.client:
            raise refuse(401, "the sign-in service answered for another program: tell the administrator")
        return to_user(claims, self._roles(claims, tokens))

    def exchange_password(self, name: str, password: str) -> dict[str, Any]:
        """Exchange a password for a token, as MONAI Label's client in Slicer does.

        Raises:
            HTTPException: 401, the service refuses; 503, it does not answer.
        """
        endpoint = self._endpoint("token_endpoint")
        with self._session(None) as session:
            tokens = _ask(lambda: session.fetch_token(endpoint, username=name, password=password))
        return {key: tokens[key] for key in _GIVEN_BACK if key in tokens}

    def read_token(self, token: str) -> User:
        """Whose access token a program sent.

        A token names the client that it was issued to (`azp`, or `client_id` by RFC 9068) and those that it is for
        (`aud`). One that names others alone was given to another program, which may not pass it on to here.

        Raises:
            HTTPException: 401, it is not valid, or not for this server; 503, the service does not answer.
        """
        claims = self.realm.decode(token)
        audience = claims.get("aud") or []
        named = [claims.get("azp"), claims.get("client_id"), *([audience] if isinstance(audience, str) else audience)]
        if any(named) and self.client not in named:
            raise refuse(401, f"the token is for another program of the hospital: have it issued for {self.client}")
        return to_user(claims)

    def find_end(self, token: str) -> float:
        """When an access token ends by itself, in seconds since 1970.

        Raises:
            HTTPException: as `read_token`.
        """
        return float(self.realm.decode(token)["exp"])

    def _roles(self, claims: dict[str, Any], tokens: dict[str, Any]) -> list[str]:
        """Roles from the first that has them: the identity token, the access token, the service itself."""
        roles = find_roles(claims)
        if roles is None:
            try:
                roles = find_roles(self.realm.decode(str(tokens.get("access_token"))))
            except HTTPException:
                roles = None  # for us an opaque text
        address = self.realm.configuration().get("userinfo_endpoint")
        if roles is None and address:
            bearer = {"Authorization": f"Bearer {tokens.get('access_token')}"}
            about = _ask(lambda: self.realm.get(address, headers=bearer))
            roles = find_roles(about) if about.get("sub") == claims.get("sub") else None
        return roles or []

    def _session(self, callback: str | None) -> OAuth2Session:
        session = OAuth2Session(
            self.client,
            self._secret or None,
            scope=_SCOPE,
            redirect_uri=callback,
            token_endpoint_auth_method=self._method(),
            code_challenge_method="S256",
            default_timeout=self.realm.timeout,
        )
        self.realm.bind(session)
        return session

    def _method(self) -> str:
        """How this server proves who it is: as the service prefers, of what both know."""
        supported = self.realm.configuration().get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        if not self._secret:
            return "none"
        return "client_secret_basic" if "client_secret_basic" in supported else "client_secret_post"

    def _issuer(self) -> str:
        return self.realm.configuration().get("issuer", self.realm.issuer)

    def _endpoint(self, name: str) -> str:
        address = self.realm.configuration().get(name)
        if not address:
            raise refuse(503, f"the sign-in service has no {name}: tell the administrator")
        return address


def _ask(question: Any) -> dict[str, Any]:
    """Ask the service, and translate what may come of it."""
    try:
        return question()
    except OAuthError as error:
        logger.info("the sign-in service refuses: %s", error.error)
        raise refuse(401, "the sign-in service refuses: check user name and password, or sign in again") from error
    except (requests.RequestException, ValueError) as error:
        logger.warning("the sign-in service does not answer as expected: %s", type(error).__name__)
        raise refuse(503, "the sign-in service does not answer: try again, or tell the administrator") from error
