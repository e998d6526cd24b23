"""The federation's state, outside FLARE's run directory: FLARE never resumes a job, this does.

A folder:

    federation.json            who, what, the round reached, and what each site did in every round
    global-000002.safetensors  global weights after two rounds; the last two are kept

Weights are written first, under a name of their own; then `federation.json`,
which names them, is replaced in one rename. A round counts when that rename has happened, so it counts
once or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.learnable_persistor import LearnablePersistor
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable

from fl_bridge.exchange import from_params, to_params
from fl_bridge.record import FORMAT, GLOBAL, RECORD, FederationRecord, make_id, now
from iopfl.base.errors import ConfigError, WeightsError
from iopfl.core.networks import build_network
from iopfl.core.task import Task
from iopfl.core.weights import Weights, hash_weights, read_weights, snapshot, write_weights

_KEPT = 2


class FederationState(FederationRecord):
    """A federation's state folder, opened. `create` and `open` are the ways to get one."""

    @classmethod
    def create(
        cls, folder: Path, *, task: Task, clients: Mapping[str, str], seed: int, federation: str = ""
    ) -> FederationState:
        """Begin a federation: a new id, the initial global weights, no round yet.

        Args:
            folder: where its state will be.
            task: what is segmented.
            clients: FLARE client name -> site name.
            seed: the seed of the initial weights.
            federation: its id; empty = a new one.
        """
        weights = snapshot(build_network(task, seed=seed))
        state = cls(
            folder,
            {
                "format": FORMAT,
                "federation": federation or make_id(task),
                "created": now(),
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
        finished = {**record, "global_hash": hash_weights(weights), "ended": now()}
        self._record["rounds"] = [*self._record["rounds"], finished]
        self._record["failure"] = None
        try:
            self._write_global(weights, rounds_done=self.rounds_done)
            self._write()
        except OSError:
            self._record = before
            raise
        for old in sorted(self.folder.glob(GLOBAL))[:-_KEPT]:
            old.unlink(missing_ok=True)

    def _write_global(self, weights: Weights, *, rounds_done: int) -> None:
        name = f"global-{rounds_done:06d}.safetensors"
        write_weights(self.folder / name, weights, {"federation": self.federation, "rounds_done": str(rounds_done)})
        self._record.update({"global": name, "hash": hash_weights(weights)})


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
