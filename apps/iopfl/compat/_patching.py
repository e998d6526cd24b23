"""What the work-arounds share: doing something once, and putting a check before a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def once(apply: Callable[[], None]) -> Callable[[], None]:
    """Make a function do its work on the first call only."""
    applied = False

    @functools.wraps(apply)
    def apply_once() -> None:
        nonlocal applied
        if not applied:
            apply()
            applied = True

    return apply_once


def guard(owner: Any, name: str, check: Callable[[dict[str, Any]], None]) -> None:
    """Call `check` with a function's arguments before each call of that function.

    Args:
        owner: the module or class that holds the function; its callers must
            look it up there by name, as MONAI Label's endpoints do.
        name: the function's name.
        check: receives the arguments by name, defaults filled in; raises to refuse.
    """
    original = getattr(owner, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        check(dict(bound.arguments))
        return original(*args, **kwargs)

    setattr(owner, name, guarded)
