"""A round counts once or not at all."""

import json

import pytest
import torch
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable

from fl_bridge.persistor import FederationPersistor, FederationState
from iopfl.base.errors import ConfigError, WeightsError

CLIENTS = {"b-1": "south", "a-2": "north"}


@pytest.fixture
def state(tmp_path, task):
    return FederationState.create(tmp_path / "state", task=task, clients=CLIENTS, seed=1)


def test_a_new_federation_has_its_initial_weights_and_a_fixed_order(state, task):
    again = FederationState.open(state.folder)
    assert (again.rounds_done, again.seed, again.task) == (0, 1, task)
    assert list(again.clients.values()) == ["north", "south"]
    assert again.read_global().keys() == state.read_global().keys()


def test_rounds_count_once_and_two_files_are_kept(state):
    weights = state.read_global()
    for round_index in range(4):
        FederationState.open(state.folder).commit(weights, {"round_index": round_index, "sites": {}})
    again = FederationState.open(state.folder)
    assert again.rounds_done == 4
    assert sorted(path.name for path in state.folder.glob("*.safetensors")) == [
        "global-000003.safetensors",
        "global-000004.safetensors",
    ]
    for round_index in (3, 5):
        with pytest.raises(ConfigError, match="counts once"):
            again.commit(weights, {"round_index": round_index, "sites": {}})
    assert FederationState.open(state.folder).rounds_done == 4


def test_a_crash_between_weights_and_record_leaves_the_round_before(state, monkeypatch):
    before = state.read_global()
    monkeypatch.setattr(FederationState, "_write", lambda self: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        state.commit({key: value + 1 for key, value in before.items()}, {"round_index": 0, "sites": {}})
    monkeypatch.undo()
    again = FederationState.open(state.folder)
    assert again.rounds_done == state.rounds_done == 0
    assert all(torch.equal(value, before[key]) for key, value in again.read_global().items())


def test_altered_weights_and_a_missing_state_are_named(state, tmp_path):
    (state.folder / "global-000000.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="whole safetensors"):
        state.read_global()
    with pytest.raises(ConfigError, match=r"federation\.json"):
        FederationState.open(tmp_path)
    (state.folder / "federation.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ConfigError, match="another version"):
        FederationState.open(state.folder)


def test_flare_loads_and_saves_through_the_persistor(state):
    persistor = FederationPersistor(str(state.folder))
    loaded = persistor.load(None)
    assert loaded[ModelLearnableKey.META]["base_hash"] == state.global_hash
    record = {"record": {"round_index": 0, "sites": {"north": {"status": "averaged"}}}}
    persistor.save(make_model_learnable(loaded[ModelLearnableKey.WEIGHTS], record), None)
    again = persistor.open_state()
    assert again.rounds_done == 1 and again.global_hash == state.global_hash
