"""The commands `iopfl users` and `iopfl audit`: who may sign in at a label server, and what was done there."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iopfl.base.errors import ConfigError

if TYPE_CHECKING:
    from iopfl.access.users import Users

AddAction = Callable[[str, Callable[[Any], None], str, str], argparse.ArgumentParser]


def add_user_actions(add: AddAction) -> None:
    """Add every action to the parser of `iopfl users`."""
    from iopfl.access.users import ROLES

    adder = add("add", _add, "Add a user; asks for a password.", "iopfl users add anna --role annotator")
    lister = add("list", _list, "Users, their roles and tokens.", "iopfl users list")
    remover = add("remove", _remove, "Remove a user, who is signed out with that.", "iopfl users remove anna")
    changer = add("password", _password, "Give a user another password.", "iopfl users password anna")
    token = add(
        "token",
        _token,
        "Make a token for a program, such as a federation's bridge, or revoke one.",
        "iopfl users token bridge --days 90",
    )
    for parser in (adder, remover, changer, token):
        parser.add_argument("name", help="user name")
    adder.add_argument("--role", choices=ROLES, required=True, help="a reviewer may do all an annotator may, and so on")
    adder.add_argument("--no-password", action="store_true", help="for a program: signs in with tokens alone")
    for parser in (adder, changer):
        parser.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    lister.add_argument("--json", action="store_true", help="for programs")
    choice = token.add_mutually_exclusive_group()
    choice.add_argument("--days", type=int, default=90, help="how long it lasts (default: %(default)s)")
    choice.add_argument("--revoke", metavar="NUMBER", help="make a token invalid; iopfl users list shows its number")
    for parser in (adder, lister, remover, changer, token):
        _add_state(parser)


def add_audit_actions(add: AddAction) -> None:
    """Add every action to the parser of `iopfl audit`."""
    show = add("show", _show, "What was done, by whom, and when.", "iopfl audit show --image case07")
    show.add_argument("--user", help="by this user alone")
    show.add_argument("--image", metavar="ID", help="about this image alone, by its id; names stand there as hashes")
    show.add_argument("--since", metavar="DAY", help="from this day on, e.g. 2026-11-25, in UTC")
    show.add_argument("--json", action="store_true", help="for programs")
    verify = add(
        "verify", _verify, "Check that no line was altered; prints the newest line's hash.", "iopfl audit verify"
    )
    verify.add_argument("--noted", default="", metavar="HASH", help="printed by an earlier verify: must still be there")
    for parser in (show, verify):
        _add_state(parser)


def _add_state(parser: argparse.ArgumentParser) -> None:
    from iopfl.server_options import DEFAULT_STATE

    text = "state folder (default: %(default)s)"
    parser.add_argument("--state", type=Path, default=DEFAULT_STATE, metavar="DIR", help=text)


def _open(arguments: Any) -> Users:
    from iopfl.access.users import Users

    return Users(arguments.state)


def _add(arguments: Any) -> None:
    password = None if arguments.no_password else _read_password(arguments)
    _open(arguments).add(arguments.name, arguments.role, password)
    _record(arguments, "users add", role=arguments.role)
    print(f"added {arguments.name}, {arguments.role}")


def _list(arguments: Any) -> None:
    accounts = _open(arguments).all()
    if arguments.json:
        found = [
            {
                "name": account.name,
                "role": account.role,
                "has_password": bool(account.password),
                "tokens": [{"number": token.number, "expires": token.expires} for token in account.tokens],
            }
            for account in accounts
        ]
        print(json.dumps(found, indent=1))
        return
    if not accounts:
        print(f"no users in {arguments.state}")
    for account in accounts:
        tokens = [f"{token.number} ({_describe_end(token)})" for token in account.tokens]
        signs_in = "password" if account.password else "tokens alone"
        print(f"{account.name:<24}{account.role:<12}{signs_in:<14}{', '.join(tokens)}".rstrip())


def _describe_end(token: Any) -> str:
    return f"{'until' if token.is_valid else 'expired on'} {token.expires[:10]}"


def _remove(arguments: Any) -> None:
    _open(arguments).remove(arguments.name)
    _record(arguments, "users remove")
    print(f"removed {arguments.name}")


def _password(arguments: Any) -> None:
    _open(arguments).set_password(arguments.name, _read_password(arguments))
    _record(arguments, "users password")
    print(f"{arguments.name} has another password, and is signed out everywhere")


def _token(arguments: Any) -> None:
    users = _open(arguments)
    if arguments.revoke:
        users.revoke_token(arguments.name, arguments.revoke)
        _record(arguments, "users token revoke", token=arguments.revoke)
        print(f"revoked token {arguments.revoke} of {arguments.name}")
        return
    token = users.make_token(arguments.name, arguments.days)
    _record(arguments, "users token", days=str(arguments.days))
    print(token)
    print("Shown this once: keep it in a file that nobody else may read.", file=sys.stderr)


def _read_password(arguments: Any) -> str:
    """A password from the terminal, twice, or from standard input; never from the command line, which others see."""
    if arguments.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise ConfigError("expected a terminal to ask for a password: give --password-stdin to pipe it in")
    first = getpass.getpass(f"Password for {arguments.name}: ")
    if getpass.getpass("The same once more: ") != first:
        raise ConfigError("the two passwords differ: nothing was changed, try again")
    return first


def _record(arguments: Any, what: str, **about: str) -> None:
    from iopfl.access.audit import AuditLog

    # The system's account: who may write the file of users needs no sign-in.
    AuditLog(arguments.state / "audit").append(f"system:{getpass.getuser()}", what, {"user": arguments.name, **about})


def _show(arguments: Any) -> None:
    from iopfl.access.audit import AuditLog

    log = AuditLog(arguments.state / "audit")
    images = {arguments.image, log.pseudonym(arguments.image)} if arguments.image else set()
    for entry in log.entries():
        if arguments.user and entry.who != arguments.user and entry.about.get("user") != arguments.user:
            continue
        if images and images.isdisjoint(entry.about.values()):
            continue
        if arguments.since and entry.time < arguments.since:
            continue
        if arguments.json:
            print(json.dumps(asdict(entry)))
            continue
        about = " ".join(f"{key}={value}" for key, value in entry.about.items())
        line = f"{entry.time[:19]}Z  {entry.who or '-':<16} {entry.what}  {about}"
        print("".join(letter if letter.isprintable() else "?" for letter in line))


def _verify(arguments: Any) -> None:
    from iopfl.access.audit import AuditLog

    log = AuditLog(arguments.state / "audit")
    chain = log.verify(noted=arguments.noted)
    torn = f", {chain.torn} of them cut off by a crash" if chain.torn else ""
    print(f"{log.path}: {chain.lines} lines{torn}, {chain.size / 2**20:.1f} MB, none altered")
    print(f"newest line: {chain.head or 'none'}")
