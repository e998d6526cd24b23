"""Numbers that JSON can say."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any


def finite(value: Any, *, zeros: Collection[str] = (), key: str = "") -> Any:
    """Replace what JSON cannot say, infinity and NaN, by None.

    Args:
        value: what JSON is to be made of, at any depth.
        zeros: keys whose values become 0 instead: their readers compute with them.
        key: the value's own.
    """
    if isinstance(value, dict):
        return {name: finite(item, zeros=zeros, key=str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item, zeros=zeros) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0 if key in zeros else None
    return value
