"""The rule file: which received series is segmented by what, and where the result goes.

YAML with two keys. `rules` is a list; the first that a series matches answers it, and a series that
none matches is not segmented. `destinations` names who receives results.

    rules:
      - name: fundus
        match: {modality: OP, description: "*color*", calling: "RETINA*", min_slices: 1}
        answer: vessel_routed
        send_to: [pacs, web]
        results: [seg, report]
    destinations:
      pacs: {ae_title: ORTHANC, host: 127.0.0.1, port: 4242}
      web: {stow: "https://pacs/dicom-web", user: iopfl, password_env: PACS_PASSWORD}

A rule takes its task's criteria (`core/criteria.py`) but for those that it names itself: modality, body_part,
description, orientation, min_slices, max_slices. `"*"` takes whatever comes.

`results` says what is sent of a mask, by the names in `dicomio.result_kinds`; without it a SEG alone. Patterns are
those of file names (`*`, `?`, `[abc]`), or regular expressions between slashes (`"/^t2.*tra/"`) that may match
anywhere; upper and lower case are the same.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import translate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iopfl.base.errors import ConfigError
from iopfl.base.names import ROUTED, task_of
from iopfl.core.criteria import ImageFacts, find_mismatch
from iopfl.core.settings_files import read_settings
from iopfl.core.task import Task
from iopfl.dicomio.result_kinds import DISAGREEMENT, KINDS, check_kinds
from iopfl.dicomio.showing import show_code
from iopfl.dimse.peers import TLS, Peer

_CODES = ("modality", "body_part", "orientation")
_PATTERNS = (*_CODES, "description", "calling", "called")
_SIZES = ("min_slices", "max_slices")
_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,63}")
_PEER_KEYS = ("ae_title", "host", "port", "tls")
_TLS_KEYS = ("ca", "certificate", "key", "name")


@dataclass(frozen=True)
class Facts(ImageFacts):
    """What a rule looks at: what the series is, and the AE titles that it came from and was sent to."""

    calling: str = ""
    called: str = ""


@dataclass(frozen=True)
class Stow:
    """A PACS that takes instances over DICOMweb.

    Attributes:
        url: the URL of its DICOMweb root.
        user: to sign in with; empty = none.
        password_env: environment variable that holds the password.
        token_env: environment variable that holds a bearer token, instead.
        ca: PEM certificates that the server's must lead to; None = those that everybody trusts.
        proxy: URL of the proxy that leads there; empty = none, whatever the environment says.
    """

    url: str
    user: str = ""
    password_env: str = ""
    token_env: str = ""
    ca: Path | None = None
    proxy: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"stow: expected http(s)://host/dicom-web, given {self.url!r}")
        if parts.username:
            raise ConfigError(
                f"stow: expected http(s)://{parts.hostname}/... without a password in it: give user and password_env"
            )
        if self.proxy and (urlsplit(self.proxy).scheme not in ("http", "https") or not urlsplit(self.proxy).hostname):
            raise ConfigError(f"stow: proxy: expected http(s)://host:port, given {self.proxy!r}")
        if bool(self.user) != bool(self.password_env) or (self.user and self.token_env):
            raise ConfigError("stow: expected user and password_env, or token_env alone, or neither")
        if self.ca and not self.ca.is_file():
            raise ConfigError(f"stow: there is no file {self.ca}")
        for name in (self.password_env, self.token_env):
            if name and not os.environ.get(name):
                raise ConfigError(f"stow: expected its secret in the environment variable {name}, which is not set")

    def __str__(self) -> str:
        return self.url

    def headers(self) -> dict[str, str]:
        """What signs in, as it is now; empty without any."""
        if self.token_env:
            return {"Authorization": f"Bearer {os.environ.get(self.token_env, '')}"}
        if self.user:
            pair = f"{self.user}:{os.environ.get(self.password_env, '')}".encode()
            return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        return {}


Destination = Peer | Stow


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: the name of the rule, in logs and lists.
        answer: task that segments, or `<task>_routed`.
        send_to: names of destinations.
        patterns: what the series must look like, e.g. modality -> `MR`.
        min_slices: below which the rule does not match; 0 = the task's.
        max_slices: above which it does not; 0 = the task's.
        results: kinds of what is sent.
        task: the task of what answers, whose criteria count where the rule names none; None = not known.
    """

    name: str
    answer: str
    send_to: tuple[str, ...]
    patterns: Mapping[str, str] = field(default_factory=dict)
    min_slices: int = 0
    max_slices: int = 0
    results: tuple[str, ...] = KINDS[:1]
    task: Task | None = None

    def find_mismatch(self, facts: Facts) -> str | None:
        """Why the rule does not match, without what people write into descriptions; None = it does."""
        for key, pattern in self.patterns.items():
            given = str(getattr(facts, key))
            if not _compile(pattern).search(given):
                shown = show_code(given) if key in _CODES else repr(given)
                return f"{key if key == 'description' else f'{key} {shown}'} is not {pattern!r}"
        if facts.slices < self.min_slices:
            return f"{facts.slices} slices, at least {self.min_slices} expected"
        if self.max_slices and facts.slices > self.max_slices:
            return f"{facts.slices} slices, at most {self.max_slices} expected"
        if self.task is None:
            return None
        named = [*self.patterns, *(["slices"] if self.min_slices or self.max_slices else ())]
        mismatch = find_mismatch(self.task, facts, but=named)
        return mismatch and f"{mismatch} (asked by task {self.task.name}: name it in match to send it nonetheless)"


@dataclass(frozen=True)
class Rules:
    """A whole rule file.

    Attributes:
        rules: in order.
        destinations: by name.
    """

    rules: tuple[Rule, ...]
    destinations: Mapping[str, Destination]

    def find(self, facts: Facts) -> tuple[Rule | None, list[str]]:
        """The first rule that matches, and why those before it do not."""
        reasons: list[str] = []
        for rule in self.rules:
            mismatch = rule.find_mismatch(facts)
            if mismatch is None:
                return rule, reasons
            reasons.append(f"{rule.name}: {mismatch}")
        return None, reasons

    def find_peer(self, ae_title: str) -> Peer | None:
        """The DIMSE destination with an AE title."""
        peers = (destination for destination in self.destinations.values() if isinstance(destination, Peer))
        return next((peer for peer in peers if peer.ae_title == ae_title), None)

    def check_experts(self, count: Callable[[str], int]) -> None:
        """Raises:
        ConfigError: a rule asks where the experts disagree of a task whose bank has one; `count` says how many.
        """
        for rule in self.rules:
            if DISAGREEMENT in rule.results and count(task_of(rule.answer)) < 2:
                raise ConfigError(f"rule {rule.name}: {DISAGREEMENT} takes a bank of several models, this has one")

    def for_tasks(self, tasks: Iterable[Task]) -> Rules:
        """These rules for the tasks that there are, whose criteria they take.

        Raises:
            ConfigError: names the rule whose answer no task gives.
        """
        known = {answer: task for task in tasks for answer in (task.name, task.name + ROUTED)}
        for rule in self.rules:
            if rule.answer not in known:
                raise ConfigError(
                    f"rule {rule.name}: no answer {rule.answer!r}: the banks given answer {', '.join(known)}"
                )
        return replace(self, rules=tuple(replace(rule, task=known[rule.answer]) for rule in self.rules))


def read_rules(path: Path) -> Rules:
    """Read a rule file.

    Raises:
        ConfigError: no such file, no YAML, an unknown or missing key or a wrong value; the message says where.
    """
    values = read_settings(path, f"rules {path.name}")
    try:
        return _build_rules(values, path.parent)
    except ConfigError as error:
        raise ConfigError(f"rules {path.name}: {error}") from error


def _build_rules(values: Any, folder: Path) -> Rules:
    top = _keys(values, "the file", required=("rules",), optional=("destinations",))
    given = _mapping(top.get("destinations") or {}, "destinations")
    destinations = {
        _name(name, "destinations"): _build_destination(str(name), item, folder) for name, item in given.items()
    }
    if not isinstance(top["rules"], list) or not top["rules"]:
        raise ConfigError("rules: expected a list of at least one rule")
    rules = [_build_rule(item, number, destinations) for number, item in enumerate(top["rules"], start=1)]
    names = [rule.name for rule in rules]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ConfigError(f"rules: several have the name {', '.join(double)}: give each its own")
    return Rules(tuple(rules), destinations)


def _build_rule(values: Any, number: int, destinations: Mapping[str, Destination]) -> Rule:
    where = f"rule {number}"
    given = _keys(values, where, required=("answer", "send_to"), optional=("name", "match", "results"))
    match = _keys(given.get("match") or {}, f"{where}, match", optional=(*_PATTERNS, *_SIZES))
    patterns = {key: str(value) for key, value in match.items() if key not in _SIZES}
    for key, pattern in patterns.items():
        try:
            _compile(pattern)
        except re.error as error:
            raise ConfigError(f"{where}: {key}: no regular expression {pattern!r}: {error}") from error
    sizes = {key: match[key] for key in _SIZES if key in match}
    for key, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"{where}: {key}: expected a number from 1, given {size!r}")
    send_to = [given["send_to"]] if isinstance(given["send_to"], str) else given["send_to"]
    if not isinstance(send_to, list) or not send_to:
        raise ConfigError(f"{where}: send_to: expected names of destinations, given {send_to!r}")
    unknown = [name for name in send_to if name not in destinations]
    if unknown:
        raise ConfigError(f"{where}: send_to: no destination {unknown[0]!r}; there are {', '.join(destinations)}")
    name = _name(given.get("name", str(number)), where)
    results = _build_results(given.get("results") or KINDS[:1], where)
    return Rule(name, str(given["answer"]), tuple(dict.fromkeys(send_to)), patterns, results=results, **sizes)


def _build_results(values: Any, where: str) -> tuple[str, ...]:
    try:
        return check_kinds([values] if isinstance(values, str) else list(values))
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{where}: results: {error}") from error


def _build_destination(name: str, values: Any, folder: Path) -> Destination:
    where = f"destination {name}"
    try:
        if isinstance(values, Mapping) and "stow" in values:
            known = [item.name for item in fields(Stow) if item.name != "url"]
            given = dict(_keys(values, where, required=("stow",), optional=known))
            ca = folder / str(given.pop("ca")) if given.get("ca") else None
            return Stow(url=str(given.pop("stow")), ca=ca, **{key: str(value) for key, value in given.items()})
        given = dict(_keys(values, where, required=_PEER_KEYS[:3], optional=_PEER_KEYS[3:]))
        tls = given.pop("tls", None)
        if not isinstance(given["port"], int):
            raise ConfigError(f"port: expected a number, given {given['port']!r}")
        return Peer(str(given["ae_title"]), str(given["host"]), given["port"], _build_tls(tls, folder))
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from error


def _build_tls(values: Any, folder: Path) -> TLS | None:
    if values is None:
        return None
    given = _keys(values, "tls", required=_TLS_KEYS[:1], optional=_TLS_KEYS[1:])
    ca, certificate, key = (folder / str(given[word]) if given.get(word) else None for word in _TLS_KEYS[:3])
    assert ca is not None
    return TLS(ca, certificate, key, str(given.get("name") or ""))


def _compile(pattern: str) -> re.Pattern[str]:
    """A pattern of the file as a regular expression to search with."""
    if len(pattern) > 1 and pattern[0] == pattern[-1] == "/":
        return re.compile(pattern[1:-1], re.IGNORECASE)
    return re.compile(r"\A" + translate(pattern), re.IGNORECASE)


def _keys(values: Any, where: str, *, required: Sequence[str] = (), optional: Sequence[str] = ()) -> Mapping[str, Any]:
    """Values that have the required keys and none besides the known ones."""
    values = _mapping(values, where)
    known = (*required, *optional)
    unknown = [str(key) for key in values if key not in known]
    missing = [key for key in required if values.get(key) in (None, "")]
    if unknown or missing:
        wrong = f"unknown key {', '.join(unknown)}" if unknown else f"{', '.join(missing)} is missing"
        raise ConfigError(f"{where}: {wrong}; there are {', '.join(known)}")
    return values


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected 'key: value' lines, given {type(values).__name__}")
    return values


def _name(name: Any, where: str) -> str:
    if not _NAME.fullmatch(str(name)):
        raise ConfigError(f"{where}: expected a name of letters, digits, - and _, given {str(name)[:64]!r}")
    return str(name)
