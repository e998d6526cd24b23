"""What may be averaged, and what is refused."""

import dataclasses

import pytest
import torch

from fl_bridge.checking import check_answer, check_update, find_outliers, keep_metrics, plain_line
from fl_bridge.exchange import from_params, to_params
from iopfl.base.errors import WeightsError
from iopfl.core.order import Order
from iopfl.core.weights import complete, floating

ORDER = Order("disk-1", 3, "abc")
GLOBAL = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


def good_update() -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 3), 0.1), "bias": torch.zeros(2)}


def test_a_good_update_passes_and_its_norm_is_returned():
    assert check_update(good_update(), GLOBAL, norm_limit=100, what="update") == pytest.approx(0.1 * 6**0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.full((2, 3), torch.nan)}, "weight holds NaN"),
        ({"bias": torch.full((2,), torch.inf)}, "bias holds NaN or infinity"),
        ({"bias": torch.zeros(3)}, r"bias: expected \(2,\)"),
        ({"bias": torch.zeros(2, dtype=torch.float64)}, "float64"),
        ({"extra": torch.zeros(1)}, "unexpected .*extra"),
        ({"weight": torch.full((2, 3), 1000.0)}, "norm"),
    ],
)
def test_a_bad_update_is_refused_with_its_reason(change, message):
    with pytest.raises(WeightsError, match=message):
        check_update({**good_update(), **change}, GLOBAL, norm_limit=100, what="update")


def test_a_missing_key_is_refused():
    with pytest.raises(WeightsError, match=r"missing .*bias"):
        check_update({"weight": GLOBAL["weight"]}, GLOBAL, norm_limit=100, what="update")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round_index": 2}, "stale, of round 2, this is round 3"),
        ({"base_hash": "xyz"}, "other global weights"),
        ({"federation": "other"}, "of federation 'other'"),
        ({"round_index": None}, "expected federation, round_index"),
        ({"samples": 0}, "sample count"),
        ({"samples": 10**12}, "sample count"),
        ({"samples": True}, "sample count"),
        ({"samples": 2.5}, "sample count"),
        ({"samples": -3}, "sample count"),
        ({"samples": float("nan")}, "sample count"),
        ({"samples": float("inf")}, "sample count"),
        ({"samples": "9"}, "sample count"),
        ({"samples": None}, "sample count"),
    ],
)
def test_an_answer_to_another_question_is_refused(change, message):
    check_answer({**ORDER.to_meta(), "samples": 4}, ORDER, what="update")
    with pytest.raises(WeightsError, match=message):
        check_answer({**ORDER.to_meta(), "samples": 4, **change}, ORDER, what="update")


def test_the_large_one_of_two_is_the_outlier_and_equals_are_none():
    assert list(find_outliers({"a": 1.0, "b": 500.0}, norm_limit=100)) == ["b"]
    assert find_outliers({"a": 2.0, "b": 2.0, "c": 2.1}, norm_limit=100) == {}
    assert find_outliers({"a": 0.0, "b": 1.0}, norm_limit=100) == {}
    assert find_outliers({}, norm_limit=100) == {}


def test_only_known_finite_figures_are_kept():
    metrics = {"dice": 0.5, "loss": float("nan"), "name": "Jane", "seconds": 3}
    assert keep_metrics({"metrics": metrics}) == {"dice": 0.5, "seconds": 3.0}
    assert keep_metrics({"metrics": "none"}) == {}
    absurd = {"dice": 1e308, "dice_global": -0.1, "dice_local": True, "loss": -1e300, "seconds": 10**400}
    assert keep_metrics({"metrics": absurd}) == {}, "one site's figure must not own the mean"


def test_weights_survive_the_way_and_counters_stay_at_the_site():
    weights = {**GLOBAL, "batches": torch.tensor(7)}
    sent = to_params(weights, integers=False)
    assert set(sent) == {"weight", "bias"}
    received = complete(from_params(sent, what="update"), {**weights, "batches": torch.tensor(0)})
    assert list(received) == list(weights)
    assert received["batches"] == 0 and torch.equal(received["weight"], GLOBAL["weight"])
    assert floating(weights).keys() == sent.keys()


@pytest.mark.parametrize("params", [None, "text", {"weight": object()}, {"weight": ["a"]}])
def test_what_is_no_weights_is_refused(params):
    with pytest.raises(WeightsError):
        from_params(params, what="update")


def test_an_order_survives_the_way():
    assert Order.from_meta(dataclasses.asdict(ORDER)) == ORDER


@pytest.mark.parametrize("text", ["\x1b[2Javeraged", "\x9b2J", "a\u202eb", "a\u2028b\r\nc", "x" * 10**6, {"\x07": 1}])
def test_what_a_site_says_is_one_line_without_commands_for_a_terminal(text):
    line = plain_line(text)
    assert line.isprintable() and len(line) <= 300
