"""Names that arrive from elsewhere and become part of a path or an address: of tasks, federations, clients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from iopfl.base.errors import ConfigError

LONGEST = 80
LONGEST_TAG = 40
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{LONGEST}}}")
_TAG = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{LONGEST_TAG - 1}}}")
_KINDS = {
    "activelearning",
    "batch",
    "datastore",
    "infer",
    "iopfl",
    "logs",
    "model",
    "proxy",
    "scoring",
    "session",
    "train",
}
"""First parts of addresses: all that is kept of one that was refused before its route was found."""


ROUTED = "_routed"
"""Behind a task's name: the model that mixes the bank's experts."""


def task_of(model: object) -> str:
    """Name of the task that a model of the label server, or a rule's answer, is for.

    >>> task_of("vessel_routed"), task_of("vessel"), task_of(None)
    ('vessel', 'vessel', '')
    """
    return str(model or "").removesuffix(ROUTED)


def is_tag(value: object) -> bool:
    """Whether a value can be a label's tag, hence a folder's name: no two look alike, and none is hidden."""
    return isinstance(value, str) and _TAG.fullmatch(value) is not None


def check_tag(value: object) -> str:
    """A label's tag, as it is.

    Raises:
        ConfigError: it is another value, which the message does not repeat.
    """
    if not is_tag(value):
        raise ConfigError(
            f"expected a label's tag such as final: small letters, digits, _ and -, {LONGEST_TAG} at most: correct it"
        )
    return str(value)


def is_name(value: object) -> bool:
    """Whether a value can stand in a path or an address as it is."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def check_name(value: object, what: str) -> str:
    """A name that can stand in a path or an address as it is.

    Args:
        value: what was given.
        what: it is, for the message, e.g. "a federation id".

    Raises:
        ConfigError: it is another value, which the message does not repeat: it may be of any length and content.
    """
    if not is_name(value):
        raise ConfigError(f"expected {what} of letters, digits, _ and -, {LONGEST} at most: correct it")
    return str(value)


def find_path(scope: Mapping[str, Any]) -> str:
    """A request's path as routes know it: without the prefix that a reverse proxy was told to use.

    Args:
        scope: ASGI's scope, whose `path` begins with its `root_path`.
    """
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def name_route(scope: Mapping[str, Any]) -> str:
    """A request's route as it is written down in the program, e.g. `/session/{session_id}`: without what was asked.

    Args:
        scope: ASGI's scope, in which the routing left the route.
    """
    first = find_path(scope).split("/")[1]
    return getattr(scope.get("route"), "path", "") or (f"/{first}/..." if first in _KINDS else "unknown")
