"""A FLARE filter that writes down what leaves a site; the simulator's client processes import it by name."""

import json
import secrets
from pathlib import Path

import numpy as np
from nvflare.apis.filter import Filter


class RecordingFilter(Filter):
    """Writes every message's fields to a file of its own: names, types, and all text."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def process(self, shareable, fl_ctx):
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        content = describe(shareable)
        Path(self.folder, f"{secrets.token_hex(8)}.json").write_text(json.dumps(content))
        return shareable


def describe(value):
    """A message as plain values; arrays by their type alone."""
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, np.ndarray):
        return f"array of {value.dtype}"
    return value if isinstance(value, str | int | float | bool | None) else f"object of {type(value).__name__}"
