"""Names that arrive from elsewhere and become part of a path or an address: of tasks, federations, clients."""

from __future__ import annotations

import re

from iopfl.base.errors import ConfigError

LONGEST = 80
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{LONGEST}}}")


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
