"""The federation's state, outside FLARE's run directory: FLARE never resumes a job, this does.

A folder:

    federation.json            who, what, the round reached, and what each site did in every round
    global-000002.safetensors  global weights after two rounds; the last two are kept

Weights are written first, under a name of their own; then `federation.json`,
which names them, is replaced in one rename. A round counts when that rename has happened, so it counts
once or not at all.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.learnable_persistor import LearnablePersistor
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable

from fl_bridge.exchange import from_params, to_params
from iopfl.base.errors import ConfigError, WeightsError
from iopfl.base.files import write_bytes
from iopfl.core.networks import build_network
from iopfl.core.task import Task
from iopfl.core.weights import Weights, hash_weights, read_weights, snapshot, write_weights

FORMAT = 1
RECORD = "federation.json"
_KEPT = 2


class FederationState:
    """A federation's state folder, opened. `create` and `open` are the ways to get one."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder
        self._record = dict(record)

    @classmethod
    def create(cls, folder: Path, *, task: Task, clients: Mapping[str, str], seed: int) -> FederationState:
        """Begin a federation: a new id, the initial global weights, no round yet.

        Args:
            folder: where its state will be.
            task: what is segmented.
            clients: FLARE client name -> site name.
            seed: of the initial weights.
        """
        weights = snapshot(build_network(task, seed=seed))
        state = cls(
            folder,
            {
                "format": FORMAT,
                "federation": f"{task.name}-{secrets.token_hex(6)}",
                "created": _now(),
                "task": task.to_dict(),
                "clients": dict(sorted(clients.items(), key=lambda pair: pair[1])),
                "seed": seed,
                "rounds": [],
                "shared": None,
                "failure": None,
            },
        )
        state._write_global(weights, rounds_done=0)
        state._write()
        return state

    @classmethod
    def open(cls, folder: Path) -> FederationState:
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

    def read_global(self) -> Weights:
        """The current global weights.

        Raises:
            WeightsError: the file is missing, damaged or not the one the record names.
        """
        weights, _ = read_weights(self.folder / self._record["global"])
        if hash_weights(weights) != self.global_hash:
            raise WeightsError(f"{self._record['global']}: not the weights that {RECORD} names: restore a backup")
        return weights

    def commit(self, weights: Weights, record: Mapping[str, Any]) -> None:
        """Finish a round: its new global weights and what each site did.

        Raises:
            ConfigError: not the next round; nothing is changed.
        """
        if record["round_index"] != self.rounds_done:
            raise ConfigError(f"expected round {self.rounds_done}, given {record['round_index']}: a round counts once")
        before = dict(self._record)
        finished = {**record, "global_hash": hash_weights(weights), "ended": _now()}
        self._record["rounds"] = [*self._record["rounds"], finished]
        self._record["failure"] = None
        try:
            self._write_global(weights, rounds_done=self.rounds_done)
            self._write()
        except OSError:
            self._record = before
            raise
        for old in sorted(self.folder.glob("global-*.safetensors"))[:-_KEPT]:
            old.unlink(missing_ok=True)

    def admit(self, clients: Mapping[str, str]) -> None:
        """Take in sites that are new; none is ever removed, as rounds name them."""
        if not set(clients) <= set(self._record["clients"]):
            both = {**self._record["clients"], **clients}
            self._record["clients"] = dict(sorted(both.items(), key=lambda pair: pair[1]))
            self._write()

    def note_shared(self, shared: Mapping[str, Any]) -> None:
        """Record the bank that was made of the rounds so far."""
        self._record.update(shared={**shared, "ended": _now()}, failure=None)
        self._write()

    def note_failure(self, reason: str | None) -> None:
        """Record why the run gave up; None when another try begins."""
        self._record["failure"] = reason
        self._write()

    def _write_global(self, weights: Weights, *, rounds_done: int) -> None:
        name = f"global-{rounds_done:06d}.safetensors"
        write_weights(self.folder / name, weights, {"federation": self.federation, "rounds_done": str(rounds_done)})
        self._record.update({"global": name, "hash": hash_weights(weights)})

    def _write(self) -> None:
        write_bytes(self.folder / RECORD, json.dumps(self._record, indent=1).encode())


class FederationPersistor(LearnablePersistor):
    """FLARE's door to a `FederationState`."""

    def __init__(self, state: str) -> None:
        """Args:
        state: the state folder.
        """
        super().__init__()
        self.state = state

    def open_state(self) -> FederationState:
        """The state as it is on disk now."""
        return FederationState.open(Path(self.state))

    def load(self, fl_ctx: FLContext) -> ModelLearnable:
        """The current global weights, the round reached and their hash."""
        state = self.open_state()
        meta = {"rounds_done": state.rounds_done, "base_hash": state.global_hash}
        return make_model_learnable(to_params(state.read_global(), integers=True), meta)

    def save(self, learnable: ModelLearnable, fl_ctx: FLContext) -> None:
        """Finish a round; `meta["record"]` says what each site did."""
        weights = from_params(learnable[ModelLearnableKey.WEIGHTS], what="aggregate")
        self.open_state().commit(weights, learnable[ModelLearnableKey.META]["record"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
