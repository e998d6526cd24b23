"""What `federation.json` says of a federation: who takes part, the round reached, what each site did. No weights.

Whoever wants to know how far a federation is reads this, without torch or FLARE; `persistor` adds the weights.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from iopfl.base.errors import ConfigError
from iopfl.base.files import write_bytes
from iopfl.core.task import Task

FORMAT = 1
RECORD = "federation.json"
GLOBAL = "global-*.safetensors"
"""Files of global weights, by the rounds done."""


class FederationRecord:
    """A federation's record, read from its state folder."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder
        self._record = dict(record)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the state of a federation.

        Raises:
            ConfigError: there is none, or a later version's.
        """
        path = folder / RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder}: expected the state of a federation ({RECORD}): {error}") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ConfigError(f"{path}: expected format {FORMAT}: written by another version of the bridge")
        return cls(folder, record)

    @property
    def federation(self) -> str:
        """Id of the federation."""
        return self._record["federation"]

    @property
    def task(self) -> Task:
        """What is segmented."""
        return Task.from_dict(self._record["task"])

    @property
    def clients(self) -> dict[str, str]:
        """FLARE client name -> site name, in the fixed order of sites."""
        return dict(self._record["clients"])

    @property
    def seed(self) -> int:
        """Seed of the initial weights."""
        return self._record["seed"]

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """One record a finished round: `round_index`, `base_hash`, `global_hash`, `seconds`, `sites`."""
        return list(self._record["rounds"])

    @property
    def rounds_done(self) -> int:
        """Finished rounds; the next one's index."""
        return len(self._record["rounds"])

    @property
    def global_hash(self) -> str:
        """Hash of the current global weights."""
        return self._record["hash"]

    @property
    def shared(self) -> dict[str, Any] | None:
        """The last bank: `rounds_done`, `bank_version`, `sites`, and `published` (site -> what); None before."""
        return self._record["shared"]

    @property
    def failure(self) -> str | None:
        """Why the last run gave up, one plain line."""
        return self._record["failure"]

    def to_dict(self) -> dict[str, Any]:
        """All of it but the weights, as plain values."""
        return {key: value for key, value in self._record.items() if key not in ("format", "task", "global")}

    def admit(self, clients: Mapping[str, str]) -> None:
        """Take in sites that are new; none is ever removed, as rounds name them."""
        if not set(clients) <= set(self._record["clients"]):
            both = {**self._record["clients"], **clients}
            self._record["clients"] = dict(sorted(both.items(), key=lambda pair: pair[1]))
            self._write()

    def note_shared(self, shared: Mapping[str, Any]) -> None:
        """Record the bank that was made of the rounds so far."""
        self._record.update(shared={**shared, "ended": now()}, failure=None)
        self._write()

    def note_failure(self, reason: str | None) -> None:
        """Record why the run gave up; None when another try begins."""
        self._record["failure"] = reason
        self._write()

    def _write(self) -> None:
        write_bytes(self.folder / RECORD, json.dumps(self._record, indent=1).encode())


def make_id(task: Task) -> str:
    """A new federation's id."""
    return f"{task.name}-{secrets.token_hex(6)}"


def now() -> str:
    """The time as records have it: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
