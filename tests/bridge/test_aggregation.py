"""From updates to global weights, whatever the order they came in."""

from __future__ import annotations

import math

import pytest
import torch

from fl_bridge.aggregation import AGGREGATIONS, aggregate, limit_weights
from fl_bridge.spool import Spool
from iopfl.base.errors import ConfigError
from iopfl.core.order import Order
from iopfl.core.weights import average, distance

ORDER = Order("fed-1", 3, "base")
REFERENCE = {"weight": torch.zeros(3), "bn.running_var": torch.ones(2), "count": torch.tensor(7)}


def make_updates(count):
    generator = torch.Generator().manual_seed(count)
    return {
        f"site {number}": {
            "weight": torch.randn(3, generator=generator),
            "bn.running_var": torch.rand(2, generator=generator),
        }
        for number in range(count)
    }


def combine(updates, how, samples=None):
    samples = samples or dict.fromkeys(updates, 1)
    return aggregate(REFERENCE, samples, lambda site, key: updates[site][key], how=how)


def test_the_average_is_by_sample_count():
    updates = make_updates(3)
    samples = {"site 0": 1, "site 1": 5, "site 2": 2}
    found = combine(updates, "weighted_average", samples)
    models = [{key: value + update.get(key, 0) for key, value in REFERENCE.items()} for update in updates.values()]
    expected = average(models, list(samples.values()))
    assert distance(found, expected) < 1e-6
    assert found["count"] == 7


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    "counts", [[7], [10_000_000, 3], [10_000_000, 3, 2], [5, 5, 5, 5], [1, 10, 100, 1000, 10_000], [9, 1, 9, 1, 9, 1]]
)
def test_no_site_weighs_more_than_the_limit_whatever_it_claims(counts, limit):
    samples = {f"site {number}": count for number, count in enumerate(counts)}
    weights = limit_weights(samples, limit=limit)
    assert list(weights) == list(samples) and math.fsum(weights.values()) == pytest.approx(1, abs=1e-12)
    bound = max(limit, 1 / len(counts))
    assert max(weights.values()) <= bound + 1e-12
    below = [site for site, weight in weights.items() if weight < bound - 1e-9]
    ratios = [weights[site] / samples[site] for site in below]
    assert ratios == pytest.approx(ratios[:1] * len(ratios)), "those below it weigh by their counts"
    assert all(weights[site] >= samples[site] / sum(counts) - 1e-12 for site in below)
    if max(counts) / sum(counts) <= limit:
        assert weights == pytest.approx({site: count / sum(counts) for site, count in samples.items()})


@pytest.mark.parametrize("how", ["coordinate_median", "trimmed_mean"])
@pytest.mark.parametrize("count", [3, 4, 5, 11])
def test_one_site_cannot_move_a_robust_aggregate_far(how, count):
    updates = make_updates(count)
    honest = torch.stack([update["weight"] for site, update in updates.items() if site != "site 1"])
    updates["site 1"] = {key: value + 1e6 for key, value in updates["site 1"].items()}
    found = combine(updates, how)["weight"]
    assert (found >= honest.min(0).values - 1e-6).all() and (found <= honest.max(0).values + 1e-6).all()


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_equal_updates_aggregate_to_themselves_and_one_site_is_enough(how):
    update = make_updates(1)["site 0"]
    for count in (1, 2, 5):
        found = combine({str(number): update for number in range(count)}, how)
        torch.testing.assert_close(found["weight"], update["weight"])


def test_an_unknown_aggregation_or_no_site_is_an_error():
    for updates, how in ((make_updates(2), "mean"), ({}, "weighted_average")):
        with pytest.raises(ConfigError, match="expected one of weighted_average"):
            combine(updates, how)


def test_a_spool_outlives_a_crash_and_keeps_one_order_alone(tmp_path):
    updates = make_updates(3)
    spool = Spool(tmp_path, ORDER)
    for site in reversed(list(updates)):
        spool.add(site, updates[site], {"samples": 2})
    (tmp_path / "cut off.safetensors").write_bytes(b"half")
    again = Spool(tmp_path, ORDER)
    assert set(again.sites) == set(updates) and again.sites["site 1"]["samples"] == 2
    assert distance(again.read_all("site 2"), updates["site 2"]) == 0
    again.remove("site 2")
    assert set(Spool(tmp_path, ORDER).sites) == {"site 0", "site 1"}
    assert Spool(tmp_path, Order("fed-1", 4, "base")).sites == {}
    assert list(tmp_path.glob("*.safetensors")) == []
