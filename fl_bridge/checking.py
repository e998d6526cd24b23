"""Which answers of a round may be averaged. A site is never trusted to have sent what it should."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from fl_bridge.exchange import from_params
from iopfl.base.errors import ConfigError, WeightsError
from iopfl.core.order import Order
from iopfl.core.weights import Weights, check_weights, distance

MAX_SAMPLES = 10_000_000
"""Above, a claimed sample count is no count. What a smaller one can do is bounded by `aggregation.limit_weights`."""

METRICS: Mapping[str, tuple[float, float]] = {
    "loss": (-1e6, 1e6),
    "dice": (0.0, 1.0),
    "dice_global": (0.0, 1.0),
    "dice_local": (0.0, 1.0),
    "seconds": (0.0, 1e8),
}
"""Figures that are kept of a site's answer, each within its range; all else it sends is dropped."""


class Answer(Protocol):
    """What FLARE makes of a site's message (`FLModel`)."""

    params: Any
    meta: Any


def check_answer(meta: Mapping[str, Any], order: Order, *, what: str) -> None:
    """Check that an answer belongs to this round.

    Raises:
        WeightsError: it is of another federation, round or base, or claims an impossible sample count.
    """
    try:
        answered = Order.from_meta(meta)
    except ConfigError as error:
        raise WeightsError(f"{what}: {error}") from error
    if answered.federation != order.federation:
        raise WeightsError(f"{what}: of federation {answered.federation!r}, this is {order.federation!r}")
    if answered.round_index != order.round_index:
        raise WeightsError(f"{what}: stale, of round {answered.round_index}, this is round {order.round_index}")
    if answered.base_hash != order.base_hash:
        raise WeightsError(f"{what}: starts from other global weights than this round's")
    samples = meta.get("samples")
    if type(samples) is not int or not 0 < samples <= MAX_SAMPLES:
        raise WeightsError(f"{what}: expected a sample count from 1 to {MAX_SAMPLES}, given {samples!r}")


def check_update(
    difference: Mapping[str, Tensor], global_weights: Mapping[str, Tensor], *, norm_limit: float, what: str
) -> float:
    """Check an update by itself: keys, shapes, types, finite values, norm.

    Args:
        difference: what the site sent, its floating-point entries minus the global ones.
        global_weights: floating-point entries alone.
        norm_limit: largest norm of the difference, as a multiple of the global weights' own norm.
        what: whose, for the message.

    Returns:
        The norm of the difference.

    Raises:
        WeightsError: names what is wrong.
    """
    check_weights(difference, global_weights, what=what)
    norm, limit = norm_of(difference), norm_limit * norm_of(global_weights)
    if norm > limit:
        raise WeightsError(f"{what}: its norm is {norm:.3g}, more than {norm_limit:g} times that of the global weights")
    return norm


def read_answer(
    model: Answer, order: Order, reference: Mapping[str, Tensor], *, norm_limit: float, what: str
) -> tuple[Weights, dict[str, Any]]:
    """A site's answer as it may be counted: its difference to the global weights, and what it says of it.

    Args:
        model: what FLARE received.
        order: that it answers.
        reference: floating-point entries of the global weights.
        norm_limit: see `check_update`.
        what: whose, for the message.

    Returns:
        The difference, and `samples`, `metrics`, `norm` and `personalized_round`.

    Raises:
        WeightsError: names what is wrong.
    """
    difference = from_params(model.params, what=what)
    check_answer(model.meta, order, what=what)
    norm = check_update(difference, reference, norm_limit=norm_limit, what=what)
    last = model.meta.get("personalized_round")
    last = last if type(last) is int and 0 <= last <= order.round_index else order.round_index
    about = {"samples": model.meta["samples"], "metrics": keep_metrics(model.meta), "norm": norm}
    return difference, {**about, "personalized_round": last}


def find_outliers(norms: Mapping[str, float], *, norm_limit: float) -> dict[str, str]:
    """Sites whose update is larger than a multiple of the round's median, with the reason.

    The lower median: of two sites, the larger is measured by the smaller.

    >>> find_outliers({"a": 1.0, "b": 1.2, "c": 900.0}, norm_limit=100)
    {'c': 'the norm of its update, 900, is more than 100 times the median of the round, 1.2'}
    """
    median = statistics.median_low(norms.values()) if norms else 0.0
    limit = f"more than {norm_limit:g} times the median of the round, {median:.3g}"
    return {
        site: f"the norm of its update, {norm:.3g}, is {limit}"
        for site, norm in norms.items()
        if median > 0 and norm > norm_limit * median
    }


def keep_metrics(meta: Mapping[str, Any]) -> dict[str, float]:
    """The known figures among what a site sent that are numbers and can be what they are called."""
    given = meta.get("metrics")
    values = {key: given.get(key) for key in METRICS} if isinstance(given, Mapping) else {}
    numbers = {
        key: value for key, value in values.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {key: float(value) for key, value in numbers.items() if METRICS[key][0] <= value <= METRICS[key][1]}


def plain_line(text: Any) -> str:
    """A text from elsewhere as one line of bounded length, which no terminal takes for commands.

    >>> plain_line("gone\\n\\x1b[2Jor not\\u202e")
    'gone ?[2Jor not?'
    """
    line = " ".join(str(text).split())[:300]
    return "".join(character if character.isprintable() else "?" for character in line)


def norm_of(weights: Mapping[str, Tensor]) -> float:
    """Euclidean norm over all floating-point entries."""
    zeros: Weights = {key: value.new_zeros(()).expand_as(value) for key, value in weights.items()}
    return distance(zeros, weights)
