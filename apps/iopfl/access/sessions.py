"""Who is signed in: short-lived signed tokens, for a browser's cookie and for a program's header.

A token is a JWT that this server alone makes and reads, under a key of its own in the state folder.
Signing out makes it invalid before its time, also after a restart.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt

from iopfl.base.private_files import read_or_make_key, write_private

SESSION_SECONDS = 8 * 3600
"""A working day: who leaves a workstation signed in is signed out the next morning."""
FLOW_SECONDS = 600
"""How long somebody may take to sign in at the hospital's service."""

_ALGORITHM = "HS256"


class Sessions:
    """Makes and reads the tokens of one label server."""

    def __init__(self, state: Path) -> None:
        self._key = read_or_make_key(state / "keys" / "session.key")
        self._ended_file = state / "keys" / "signed_out.json"
        self._ended = _read_ended(self._ended_file)
        self._lock = threading.Lock()
        # Cookies do not know ports: two servers on one host each need a name of their own.
        self.cookie = f"iopfl_{hashlib.sha256(b'cookie' + self._key).hexdigest()[:8]}"

    def make(self, kind: str, seconds: float, claims: Mapping[str, Any]) -> str:
        """Make a token that lasts some seconds; `kind` says what it is good for."""
        now = time.time()
        made = {**claims, "aud": kind, "iat": now, "exp": now + seconds, "jti": secrets.token_urlsafe(12)}
        return jwt.encode(made, self._key, algorithm=_ALGORITHM)

    def read(self, kind: str, token: str) -> dict[str, Any] | None:
        """A token's claims, or None where it is not ours, of another kind, too old, or signed out."""
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
        if claims is None:
            return
        with self._lock:
            now = time.time()
            self._ended = {jti: until for jti, until in self._ended.items() if until > now}
            self._ended[claims["jti"]] = float(claims["exp"])
            write_private(self._ended_file, json.dumps(self._ended).encode())


def _read_ended(file: Path) -> dict[str, float]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}
