"""Inside personalization: the recurrence, and rounds that count once."""

from __future__ import annotations

import pytest
import torch

from iopfl.base.errors import WeightsError
from iopfl.core.networks import build_network
from iopfl.core.personalization import PersonalizedModel
from iopfl.core.weights import snapshot, write_weights

from .tiny import DISK, make_experts, same_weights


def accumulate(models, alpha):
    personalized = PersonalizedModel.start(models[0], round_index=0)
    for round_index, local in enumerate(models[1:], start=1):
        personalized = personalized.accumulate(local, round_index=round_index, alpha=alpha)
    return personalized


def test_alpha_zero_is_the_local_model():
    models = make_experts(DISK, 3)
    assert same_weights(accumulate(models, alpha=0.0).weights, models[-1])


def test_alpha_one_never_moves():
    models = make_experts(DISK, 3)
    weights = accumulate(models, alpha=1.0).weights
    assert all(torch.equal(weights[k], v) for k, v in models[0].items() if v.is_floating_point())


@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_the_closed_form_after_n_rounds_statistics_included(alpha):
    models = make_experts(DISK, 6)
    weights = accumulate(models, alpha).weights
    n = len(models) - 1
    shares = [alpha**n] + [(1 - alpha) * alpha ** (n - t) for t in range(1, n + 1)]
    floating = [key for key, value in models[0].items() if value.is_floating_point()]
    assert any(key.endswith("running_var") for key in floating)
    for key in floating:
        expected = sum(share * model[key].double() for share, model in zip(shares, models, strict=True))
        torch.testing.assert_close(weights[key].double(), expected, atol=1e-6, rtol=1e-5)


def test_integer_buffers_are_the_local_models():
    first, second = ({"n": torch.tensor(count), "w": torch.zeros(2)} for count in (10, 25))
    weights = accumulate([first, second], alpha=0.9).weights
    assert weights["n"].item() == 25
    assert weights["n"].dtype == torch.int64


def test_a_round_counts_once():
    models = make_experts(DISK, 3)
    once = accumulate(models, alpha=0.3)
    assert once.accumulate(models[2], round_index=2, alpha=0.3) is once
    assert once.accumulate(models[1], round_index=1, alpha=0.3) is once
    assert once.accumulate(models[1], round_index=3, alpha=0.3) is not once


def test_rounds_that_a_site_sat_out_may_be_skipped():
    models = make_experts(DISK, 2)
    personalized = PersonalizedModel.start(models[0], round_index=1).accumulate(models[1], round_index=7, alpha=0.1)
    assert personalized.round_index == 7


def test_accumulating_changes_neither_the_history_nor_the_local_model():
    network = build_network(DISK, seed=0)
    live = network.state_dict()
    personalized = PersonalizedModel.start(live, round_index=0)
    before = {key: value.clone() for key, value in personalized.weights.items()}
    local = make_experts(DISK, 1)[0]
    copy = {key: value.clone() for key, value in local.items()}
    following = personalized.accumulate(local, round_index=1, alpha=0.1)
    with torch.no_grad():
        for value in [*network.parameters(), *local.values()]:
            value.add_(1)
    assert same_weights(personalized.weights, before)
    expected = personalized.accumulate(copy, round_index=1, alpha=0.1)
    assert same_weights(following.weights, expected.weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_local_model_that_is_not_finite_is_refused(value):
    model = make_experts(DISK, 1)[0]
    key = next(iter(model))
    bad = {**model, key: torch.full_like(model[key], value)}
    with pytest.raises(WeightsError, match=f"local model of round 1: {key} holds NaN or infinity"):
        PersonalizedModel.start(model, round_index=0).accumulate(bad, round_index=1, alpha=0.1)


def test_another_networks_model_is_refused():
    model = make_experts(DISK, 1)[0]
    with pytest.raises(WeightsError, match="not the weights of this network"):
        PersonalizedModel.start(model, round_index=0).accumulate({"w": torch.zeros(1)}, round_index=1, alpha=0.1)


def test_what_is_saved_is_loaded(tmp_path):
    personalized = PersonalizedModel(snapshot(build_network(DISK, seed=4)), 12)
    personalized.save(tmp_path / "p.safetensors")
    again = PersonalizedModel.load(tmp_path / "p.safetensors")
    assert again.round_index == 12
    assert same_weights(again.weights, personalized.weights)


@pytest.mark.parametrize("metadata", [{}, {"round_index": "last"}, {"round_index": "-1"}])
def test_weights_without_their_round_are_refused(metadata, tmp_path):
    write_weights(tmp_path / "w.safetensors", {"w": torch.zeros(1)}, metadata)
    with pytest.raises(WeightsError, match="expected a personalized model with its round"):
        PersonalizedModel.load(tmp_path / "w.safetensors")
