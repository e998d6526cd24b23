"""Who is signed in: short-lived signed tokens, for a browser's cookie and for a program's header.

A token is a JWT that this server alone makes and reads, under a key of its own in the state folder.
Signing out makes it invalid before its time, also after a restart, and at each server of that state folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jwt

from iopfl.base.errors import AccessError, ConfigError, LostKeyError
from iopfl.base.locks import hold_one
from iopfl.base.private_files import make_private, read_or_make_key, read_private, replace_key, write_private
from iopfl.base.stamps import find_stamp

logger = logging.getLogger(__name__)

SESSION_SECONDS = 8 * 3600
"""A working day: who leaves a workstation signed in is signed out the next morning."""
FLOW_SECONDS = 600
"""How long somebody may take to sign in at the hospital's service."""
DEVICE_SECONDS = 180 * 86400
"""How long a browser in which somebody signed in is known as that person's."""

_ALGORITHM = "HS256"
_LEEWAY_SECONDS = 60.0
"""A token of the hospital's counts this much longer than it says: `realm.LEEWAY_SECONDS` and more."""


class Sessions:
    """Makes and reads the tokens of one label server.

    Where the key or the list of who signed out is lost or damaged, a new key is made: a token that was
    signed out must not count again, so all tokens end, and everybody signs in anew.
    """

    def __init__(self, state: Path) -> None:
        self._key_file = state / "keys" / "session.key"
        self._ended_file = state / "keys" / "signed_out.json"
        self._key = b""
        self._ended: dict[str, float] = {}
        self._seen: tuple[Any, ...] | None = None
        self._lock = threading.Lock()
        self._refresh()

    @property
    def cookie(self) -> str:
        """Name of the session's cookie. Cookies do not know ports: two servers on one host each need their own."""
        return f"iopfl_{hashlib.sha256(b'cookie' + self._key).hexdigest()[:8]}"

    def make(self, kind: str, seconds: float, claims: Mapping[str, Any]) -> str:
        """Make a token that lasts some seconds; `kind` says what it is good for."""
        self._refresh()
        now = time.time()
        made = {**claims, "aud": kind, "iat": now, "exp": now + seconds, "jti": secrets.token_urlsafe(12)}
        return jwt.encode(made, self._key, algorithm=_ALGORITHM)

    def read(self, kind: str, token: str) -> dict[str, Any] | None:
        """A token's claims, or None where it is not ours, of another kind, too old, or signed out."""
        self._refresh()
        try:
            claims = jwt.decode(
                token, self._key, algorithms=[_ALGORITHM], audience=kind, options={"require": ["exp", "jti"]}
            )
        except jwt.PyJWTError:
            return None
        return None if claims["jti"] in self._ended else claims

    def end(self, token: str) -> None:
        """Make a session's token invalid."""
        claims = self.read("session", token)
        if claims is not None:
            self._end(claims["jti"], float(claims["exp"]))

    def end_foreign(self, token: str, expires: float) -> None:
        """Make a token of the hospital's service invalid here; `expires` is its own end, in seconds since 1970."""
        self._end(_name_foreign(token), expires + _LEEWAY_SECONDS)

    def has_ended(self, token: str) -> bool:
        """Whether somebody signed out with a token of the hospital's service."""
        self._refresh()
        return _name_foreign(token) in self._ended

    def _end(self, name: str, until: float) -> None:
        with self._lock, self._alone():
            self._load()  # what another server added
            now = time.time()
            kept = {known: end for known, end in self._ended.items() if end > now}
            write_private(self._ended_file, json.dumps({**kept, name: until}).encode())
            self._load()

    def _refresh(self) -> None:
        """Read both files, if they are others than last time: another server may share them."""
        try:
            if self._stamp() != self._seen:
                with self._lock, self._alone():
                    self._load()
        except OSError as error:
            raise self._unusable(error) from error

    def _load(self) -> None:
        try:
            is_first = not self._key_file.exists() and not self._ended_file.exists()
            key = read_or_make_key(self._key_file)
            if is_first:
                write_private(self._ended_file, b"{}")
            ended = _read_ended(self._ended_file)
        except (LostKeyError, ValueError) as error:
            key, ended = replace_key(self._key_file), {}
            write_private(self._ended_file, b"{}")
            logger.warning("%s. A new key was made, and everybody has to sign in anew", error)
        except OSError as error:
            raise self._unusable(error) from error
        except ConfigError as error:
            raise AccessError(str(error)) from error
        self._key, self._ended, self._seen = key, ended, self._stamp()

    def _unusable(self, error: OSError) -> AccessError:
        return AccessError(f"{self._key_file.parent} cannot be read or written to ({error.strerror})")

    def _stamp(self) -> tuple[Any, ...]:
        return find_stamp(self._key_file), find_stamp(self._ended_file)

    def _alone(self) -> AbstractContextManager[Path]:
        make_private(self._key_file.parent)
        return hold_one([self._key_file.with_name(".sessions.lock")])


def _name_foreign(token: str) -> str:
    """By what was signed: of one token there can be several signatures."""
    return hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()


def _read_ended(file: Path) -> dict[str, float]:
    """Who signed out, and until when each token would have counted.

    Raises:
        ValueError: the list is damaged or gone.
    """
    try:
        ended = json.loads(read_private(file))
        return {str(name): float(until) for name, until in ended.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: expected the list of who signed out, found none ({type(error).__name__})") from error
