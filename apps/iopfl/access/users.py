"""The label server's own users: who they are, what they may do, and the tokens of machines.

One YAML file in the state folder, readable by the server's account alone. Passwords are kept as
argon2id hashes, tokens as SHA-256 of 256 random bits. A running server sees a change at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from iopfl.base.errors import AccessError, ConfigError
from iopfl.base.locks import hold_one
from iopfl.base.private_files import make_private, read_private, write_private
from iopfl.base.stamps import Stamp, find_stamp

USERS_FILE = "users.yaml"
ROLES = ("annotator", "reviewer", "admin", "federation", "outside")
MIN_PASSWORD, MAX_PASSWORD = 12, 256
MAX_TOKEN_DAYS = 366
TOKEN_PREFIX = "iopfl_"
"""By which a token is known from others, and found by programs that look for leaked ones."""

_HEAD = "# Written by iopfl users; see its --help. The last line says that this file is whole."
_END = "# end"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASHES_AT_ONCE = threading.BoundedSemaphore(2)
"""Each takes 64 MiB: a flood of sign-ins must not take the memory that images need."""
_HASHER = PasswordHasher()


@dataclass(frozen=True, kw_only=True)
class MachineToken:
    """A token that was given out; the token itself is kept nowhere.

    Attributes:
        digest: SHA-256, hexadecimal.
        expires: UTC, ISO 8601.
    """

    digest: str
    expires: str

    @property
    def number(self) -> str:
        """What it is called where it is listed and revoked."""
        return self.digest[:8]

    @property
    def is_valid(self) -> bool:
        return datetime.now(UTC) < datetime.fromisoformat(self.expires)


@dataclass(frozen=True, kw_only=True)
class Account:
    """A user.

    Attributes:
        name: for signing in, and for the record of what was done.
        role: one of `ROLES`.
        password: argon2id hash; "" = signs in with tokens alone.
        tokens: those given out and not revoked.
    """

    name: str
    role: str
    password: str = ""
    tokens: tuple[MachineToken, ...] = field(default=())

    @property
    def generation(self) -> str:
        """Another one after each change of the password: what was signed in before is signed out."""
        return hashlib.sha256(self.password.encode()).hexdigest()[:16]


class Users:
    """The users of one label server. Processes may change them at once: each change waits for the other's."""

    def __init__(self, state: Path) -> None:
        self._file = state / USERS_FILE
        self._seen: Stamp | None = None
        self._accounts: dict[str, Account] = {}
        # Checked where there is no such user, so that the answer takes as long as for one there is.
        self._nobodys = _HASHER.hash(secrets.token_urlsafe())

    def all(self) -> list[Account]:
        """Everybody, by name."""
        accounts = self._read()
        return [accounts[name] for name in sorted(accounts)]

    def find(self, name: str) -> Account | None:
        return self._read().get(name)

    def add(self, name: str, role: str, password: str | None) -> None:
        """Add a user; without a password, one who signs in with tokens alone.

        Raises:
            ConfigError: there is one of that name, or name, role or password will not do.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"a user's name is 1 to 64 letters, digits and . _ @ -, beginning with a letter or digit, not {name!r}"
            )
        if role not in ROLES:
            raise ConfigError(f"a role is one of {', '.join(ROLES)}, not {role!r}")
        hashed = "" if password is None else _hash_password(name, password)
        with self._changing() as accounts:
            if name in accounts:
                raise ConfigError(f"there is a user {name} already: remove that one first, or choose another name")
            accounts[name] = Account(name=name, role=role, password=hashed)

    def remove(self, name: str) -> None:
        """Remove a user, who is signed out with that, as are the user's tokens.

        Raises:
            ConfigError: there is none of that name.
        """
        with self._changing() as accounts:
            del accounts[self._known(accounts, name).name]

    def set_password(self, name: str, password: str) -> None:
        """Give a user another password, and sign the user out everywhere.

        Raises:
            ConfigError: there is none of that name, or the password will not do.
        """
        hashed = _hash_password(name, password)
        with self._changing() as accounts:
            accounts[name] = replace(self._known(accounts, name), password=hashed)

    def make_token(self, name: str, days: int) -> str:
        """Make a token for a program that acts for a user; it is shown this once.

        Raises:
            ConfigError: there is none of that name, or the days are too many or too few.
        """
        if not 1 <= days <= MAX_TOKEN_DAYS:
            raise ConfigError(f"a token lasts 1 to {MAX_TOKEN_DAYS} days, not {days}")
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        expires = (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="seconds")
        made = MachineToken(digest=_digest(token), expires=expires)
        with self._changing() as accounts:
            account = self._known(accounts, name)
            kept = [old for old in account.tokens if old.is_valid]
            accounts[name] = replace(account, tokens=(*kept, made))
        return token

    def revoke_token(self, name: str, number: str) -> None:
        """Make a user's token invalid, at once.

        Raises:
            ConfigError: there is no such user or token.
        """
        with self._changing() as accounts:
            account = self._known(accounts, name)
            kept = tuple(token for token in account.tokens if token.number != number)
            if len(kept) == len(account.tokens):
                listed = ", ".join(token.number for token in account.tokens) or "none"
                raise ConfigError(f"{name} has no token {number}; there is: {listed}")
            accounts[name] = replace(account, tokens=kept)

    def end_token(self, token: str) -> None:
        """Make a token invalid, as who has it asked."""
        account = self.find_by_token(token)
        if account is not None:
            with contextlib.suppress(ConfigError):  # somebody else was first
                self.revoke_token(account.name, _digest(token)[:8])

    def check_password(self, name: str, password: str) -> Account | None:
        """The user whose password this is. It takes the same time whether there is such a user or not."""
        account = self._read().get(name)
        hashed = account.password if account and account.password else self._nobodys
        try:
            with _HASHES_AT_ONCE:
                _HASHER.verify(hashed, _normal(password[:MAX_PASSWORD]))
        except (Argon2Error, InvalidHashError):
            return None
        return account if account and account.password else None

    def find_by_token(self, token: str) -> Account | None:
        """The user for whom a program acts, if its token is valid."""
        digest = _digest(token)
        for account in self._read().values():
            for known in account.tokens:
                if secrets.compare_digest(known.digest, digest) and known.is_valid:
                    return account
        return None

    def _known(self, accounts: Mapping[str, Account], name: str) -> Account:
        if name not in accounts:
            raise ConfigError(f"there is no user {name!r}; there is: {', '.join(sorted(accounts)) or 'none'}")
        return accounts[name]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Account]]:
        """A copy of all accounts, written back when the block ends without an error."""
        make_private(self._file.parent)
        with hold_one([self._file.with_name(f".{USERS_FILE}.lock")]):
            accounts = dict(self._read())
            yield accounts
            content = yaml.safe_dump({name: _to_yaml(account) for name, account in sorted(accounts.items())})
            write_private(self._file, f"{_HEAD}\n{content}{_END}\n".encode())

    def _read(self) -> dict[str, Account]:
        """All accounts; the file is parsed again only when it is another than last time."""
        try:
            seen = find_stamp(self._file)
            if seen != self._seen:
                self._accounts = _from_yaml(self._file) if seen else {}
                self._seen = seen
        except OSError as error:
            raise AccessError(
                f"{self._file} cannot be read ({error.strerror}): "
                "run iopfl users as the account that the server runs under, and give the file to that account"
            ) from error
        return self._accounts


def _hash_password(name: str, password: str) -> str:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise ConfigError(
            f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters, this one has {len(password)}: "
            "a few words that nobody would guess will do"
        )
    if name.lower() in password.lower():
        raise ConfigError("a password must not hold the user's name: choose another")
    return _HASHER.hash(_normal(password))


def _normal(password: str) -> str:
    """The same whichever keyboard composed its letters."""
    return unicodedata.normalize("NFKC", password)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _to_yaml(account: Account) -> dict[str, Any]:
    tokens = [{"digest": token.digest, "expires": token.expires} for token in account.tokens]
    return {"role": account.role, "password": account.password, "tokens": tokens}


def _from_yaml(file: Path) -> dict[str, Account]:
    try:
        found = {}
        text = read_private(file).decode()
        if text.startswith(_HEAD) and not text.endswith(f"{_END}\n"):  # half a file may still be YAML
            raise ValueError("cut short")
        for name, values in yaml.safe_load(text).items():
            tokens = tuple(
                MachineToken(digest=str(token["digest"]), expires=str(token["expires"])) for token in values["tokens"]
            )
            account = Account(name=str(name), role=values["role"], password=str(values["password"]), tokens=tokens)
            if account.role not in ROLES:
                raise ValueError(f"role {account.role!r}")
            found[account.name] = account
        return found
    except ConfigError as error:  # others can read the file, and that cannot be mended
        raise AccessError(str(error)) from error
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise AccessError(
            f"{file}: expected what iopfl users writes, found something else ({type(error).__name__}): "
            "bring it back from a backup, or move it away and add the users again"
        ) from error
