"""A federation's options through FLARE's own parts, each in a running federation; and what leaves a site."""

from __future__ import annotations

import json

import pytest

from fl_bridge.federation_file import client_name
from fl_bridge.job import PACKAGES, JobOptions
from fl_bridge.persistor import FederationState
from fl_bridge.simulate import run_federation
from fl_bridge.trainer import InProcessTrainer
from iopfl.core.bank.bank import ModelBank
from iopfl.core.weights import distance, floating

from .conftest import SITES
from .recording_filter import RecordingFilter

ROUNDS = 2


@pytest.fixture
def federate(data, task, task_file, tmp_path):
    """Run a federation of all sites; gives its final global weights, and its state."""

    def federate(name, *, proximal_weight=0.0, aggregation="weighted_average", packages=PACKAGES, **options):
        clients = {client_name(site): site for site in SITES}
        folder = tmp_path / name
        FederationState.create(folder, task=task, clients=clients, seed=0)
        turns = {"turns": str(folder / "turns"), "at_once": 2}
        trainers = {
            client: InProcessTrainer(
                str(data / site),
                str(task_file),
                str(folder / "sites" / client),
                proximal_weight=proximal_weight,
                **turns,
            )
            for client, site in clients.items()
        }
        run_federation(
            folder,
            trainers,
            rounds=ROUNDS,
            bank=folder / "bank",
            keys=tmp_path / "keys",
            packages=packages,
            aggregation=aggregation,
            options=JobOptions(metrics=folder / "metrics", **options),
        )
        assert ModelBank.open(folder / "bank").names == ["global", *SITES]
        state = FederationState.open(folder)
        return state.read_global(), state

    return federate


def test_nothing_but_weights_counts_and_figures_leaves_a_site(federate, task, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path.cwd() / "tests"))
    record = RecordingFilter(str(tmp_path / "messages"))
    weights, state = federate("watched", result_filters=(record,), packages=(*PACKAGES, "bridge"))
    messages = [json.loads(path.read_text()) for path in (tmp_path / "messages").iterdir()]
    assert len(messages) == len(SITES) * (ROUNDS + 1), "an answer of each site to each round, and a shared model"
    for message in messages:
        assert set(message) == {"DXO", "__headers__"}
        body = message["DXO"]
        assert body["kind"] == "WEIGHT_DIFF"
        assert body["data"] == dict.fromkeys(floating(weights), "array of float32")
        meta = dict(body["meta"])
        figures = meta.pop("metrics")
        assert set(figures) <= {"loss", "seconds", "dice", "dice_local", "dice_global"}
        assert all(isinstance(value, float) for value in figures.values())
        assert type(meta.pop("samples")) is int
        assert {meta.pop("federation"), meta.pop("base_hash")} <= {state.federation, *_hashes(state)}
        assert set(meta) <= {"round_index", "personalized_round", "params_type", "current_round", "total_rounds"}, meta
    said = json.dumps(messages)
    assert "case0" not in said and "png" not in said and str(tmp_path) not in said


def _hashes(state):
    return {entry["base_hash"] for entry in state.rounds} | {state.global_hash}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_option_trains_and_changes_what_it_should(federate):
    plain, state = federate("plain")
    size = distance(plain, {key: value * 0 for key, value in plain.items()})
    series = {path.parent.name for path in (state.folder / "metrics").glob("*/*tfevents*")}
    assert series == {client_name(site) for site in SITES}, "figures over rounds, for TensorBoard"

    half, _ = federate("half", quantize="float16")
    assert 0 < distance(half, plain) < 0.05 * size, "half precision rounds, and little more"
    percentile, _ = federate("percentile", update_percentile=60)
    assert distance(percentile, plain) > 0
    proximal, _ = federate("proximal", proximal_weight=10.0)
    assert distance(proximal, plain) > 0
    for aggregation in ("coordinate_median", "trimmed_mean"):
        robust, _ = federate(aggregation, aggregation=aggregation)
        assert distance(robust, plain) > 0
