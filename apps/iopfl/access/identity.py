"""Who sends a request: read from a token in its header, or from the cookie of a browser that signed in.

Tokens of machines, made with `iopfl users token`, count whichever way people sign in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from monailabel.config import settings
from monailabel.endpoints.user.auth import User

from iopfl.access.audit import AuditLog
from iopfl.access.oidc import SignInService
from iopfl.access.realm import Realm, refuse
from iopfl.access.roles import FEDERATION_ROLE, OUTSIDE_ROLE, implied_roles
from iopfl.access.sessions import SESSION_SECONDS, Sessions
from iopfl.access.settings import AccessSettings
from iopfl.access.throttle import Throttle
from iopfl.access.users import TOKEN_PREFIX, Account, Users


@dataclass(frozen=True)
class Caller:
    """Who sends a request, and whether a cookie said so, which a browser sends by itself."""

    user: User
    by_cookie: bool


class Access:
    """Who may use one label server."""

    def __init__(self, chosen: AccessSettings) -> None:
        self.settings = chosen
        self.mode = chosen.mode
        self.users = Users(chosen.state)
        self.log = AuditLog(chosen.state / "audit")
        self.throttle = Throttle()
        self.service: SignInService | None = None
        if self.mode != "off":
            _ = self.sessions  # what is lost or damaged of it is said when the server starts
        if self.mode == "oidc":
            issuer, timeout = settings.MONAI_LABEL_AUTH_REALM_URI, settings.MONAI_LABEL_AUTH_TIMEOUT
            realm = Realm(issuer, timeout, ca=chosen.oidc_ca, proxy=chosen.oidc_proxy)
            client = settings.MONAI_LABEL_AUTH_CLIENT_ID
            self.service = SignInService(realm, client=client, secret=chosen.client_secret)

    @cached_property
    def sessions(self) -> Sessions:
        """Made when first asked for: without authentication there is no key to keep."""
        return Sessions(self.settings.state)

    def identify(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Caller:
        """Who sends a request.

        Raises:
            HTTPException: 401, nobody that is known here; 503, the sign-in service does not answer.
            AccessError: what says who may sign in cannot be read.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return Caller(self._from_token(token.strip()), by_cookie=False)
        if self.sessions.cookie in cookies:
            user = self._from_session(cookies[self.sessions.cookie])
            if user is None:
                raise refuse(401, "you have been signed out: sign in again")
            return Caller(user, by_cookie=True)
        raise refuse(401, "not signed in: sign in, or send a token")

    def make_session(self, user: User, generation: str = "") -> str:
        """A token that says that somebody has signed in."""
        claims = {"sub": user.username, "generation": generation}
        if self.mode == "oidc":  # the service is not asked again before the token ends
            claims |= {"roles": user.roles, "name": user.name}
        return self.sessions.make("session", SESSION_SECONDS, claims)

    def end(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> None:
        """Make invalid what a request signs in with, whoever may have copied it.

        Raises:
            OSError, AccessError: that cannot be written down, and so has not been done.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer":
            self.sessions.end(cookies.get(self.sessions.cookie, ""))
        elif token.startswith(TOKEN_PREFIX):
            self.users.end_token(token)
        elif self.service is not None:
            self.sessions.end_foreign(token, self.service.find_end(token))
        else:
            self.sessions.end(token)

    def _from_token(self, token: str) -> User:
        user = None
        if token.startswith(TOKEN_PREFIX):
            account = self.users.find_by_token(token)
            user = to_local_user(account) if account else None
        elif self.service is not None:
            user = None if self.sessions.has_ended(token) else self.service.read_token(token)
        else:
            user = self._from_session(token)
        if user is None:
            raise refuse(401, "the token is not valid here: sign in again")
        return user

    def _from_session(self, token: str) -> User | None:
        claims = self.sessions.read("session", token)
        if claims is None:
            return None
        if self.mode == "oidc":
            if "roles" not in claims:  # from before, when this server had users of its own
                return None
            return User(username=claims["sub"], name=claims.get("name"), roles=claims["roles"])
        account = self.users.find(claims["sub"])
        if account is None or account.generation != claims["generation"]:
            return None
        return to_local_user(account)


def to_local_user(account: Account) -> User:
    """An account as MONAI Label knows users; its role under the name it has there."""
    names = {
        "annotator": settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
        "reviewer": settings.MONAI_LABEL_AUTH_ROLE_REVIEWER,
        "admin": settings.MONAI_LABEL_AUTH_ROLE_ADMIN,
        "federation": FEDERATION_ROLE,
        "outside": OUTSIDE_ROLE,
    }
    return User(username=account.name, name=account.name, roles=implied_roles([names[account.role]]))
