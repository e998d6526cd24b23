"""Settings that people write as YAML: read, or refused in one plain line that says where the fault is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from iopfl.base.errors import ConfigError


def read_settings(path: Path, what: str) -> dict[str, Any]:
    """Read a file of `key: value` lines.

    Args:
        path: the file.
        what: it is, for the message, e.g. "task mine.yaml".

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{what}: {error.strerror}: expected a YAML file of settings") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # of a date such as 2026-13-45, ValueError
        raise ConfigError(f"{what}: no valid YAML{_explain(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{what}: expected 'key: value' lines, given {type(values).__name__}")
    return values


def _explain(error: Exception) -> str:
    """Where a fault is and what, in one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        place = error.problem_mark or error.context_mark
        where = f" in line {place.line + 1}" if place else ""
        return f"{where}: {' '.join((error.problem or error.context or 'cannot be understood').split())}"
    if isinstance(error, UnicodeDecodeError):
        return ": expected text in UTF-8"
    if isinstance(error, RecursionError):
        return ": nested too deep"
    return f": {' '.join(str(error).split())}"
