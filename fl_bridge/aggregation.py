"""From the sites' updates to the next global weights, one tensor at a time.

`weighted_average` is FedAvg's (McMahan et al., AISTATS 2017): by sample count, which a site claims and nobody can
check, so that `limit_weights` bounds what a count can do.
The robust ones (Yin et al., ICML 2018) count every site alike and bound what
one site can do: `coordinate_median`, and `trimmed_mean` without the largest
and the smallest fifth. They need one tensor of all sites in memory at once,
the average only a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from iopfl.base.errors import ConfigError

if TYPE_CHECKING:  # a federation's settings name what is here, and need no torch
    from torch import Tensor

    from iopfl.core.weights import Weights

TRIMMED_SHARE = 0.2

Read = Callable[[str, str], "Tensor"]
"""(site, key) -> that tensor of the site's update."""


def limit_weights(samples: Mapping[str, int], *, limit: float) -> dict[str, float]:
    """Each site's weight in the average: by sample count, and none above a limit.

    What is above it goes to the others by their counts, until none is above (water-filling). Too few sites for the
    limit weigh alike: with a limit of a half, two sites do whatever they claim.

    Args:
        samples: site -> sample count, above 0.
        limit: largest weight, from 0 to 1.

    Returns:
        Site -> weight, in the order of `samples`; they sum to 1.

    >>> limit_weights({"a": 60, "b": 30, "c": 10}, limit=0.5)
    {'a': 0.5, 'b': 0.375, 'c': 0.125}
    """
    limit = max(limit, 1 / len(samples))
    weights: dict[str, float] = {}
    count, left = sum(samples.values()), 1.0
    for site in sorted(samples, key=lambda site: -samples[site]):  # whoever is above comes before whoever is not
        weights[site] = min(limit, left * (samples[site] / count))
        left, count = left - weights[site], count - samples[site]
    return {site: weights[site] for site in samples}


def aggregate(reference: Mapping[str, Tensor], weights: Mapping[str, float], read: Read, *, how: str) -> Weights:
    """The global weights after a round.

    Args:
        reference: W^t; its integer buffers are kept.
        weights: site -> its weight, e.g. a sample count, in the order in which sums are made; normalized here.
        read: gives an update's tensors; updates are differences to W^t.
        how: one of `AGGREGATIONS`.

    Raises:
        ConfigError: no such aggregation, or no site.
    """
    if how not in AGGREGATIONS or not weights:
        raise ConfigError(f"expected one of {', '.join(AGGREGATIONS)} and a site at least, given {how!r}")
    combine = AGGREGATIONS[how]
    sites, shares = list(weights), [weight / sum(weights.values()) for weight in weights.values()]
    result: Weights = {}
    for key, value in reference.items():
        if not value.is_floating_point():
            result[key] = value.clone()
            continue
        # In double and in a fixed order: reproducible, and many sites' sum keeps its last digits.
        result[key] = (value.double() + combine(key, sites, shares, read)).to(value.dtype)
    return result


def _weighted_average(key: str, sites: Sequence[str], shares: Sequence[float], read: Read) -> Tensor:
    total: Tensor | None = None
    for site, share in zip(sites, shares, strict=True):
        part = read(site, key).double() * share
        total = part if total is None else total + part
    assert total is not None
    return total


def _coordinate_median(key: str, sites: Sequence[str], shares: Sequence[float], read: Read) -> Tensor:
    import torch

    ordered = torch.stack([read(site, key).double() for site in sites]).sort(dim=0).values
    return (ordered[(len(sites) - 1) // 2] + ordered[len(sites) // 2]) / 2


def _trimmed_mean(key: str, sites: Sequence[str], shares: Sequence[float], read: Read) -> Tensor:
    import torch

    ordered = torch.stack([read(site, key).double() for site in sites]).sort(dim=0).values
    # One at each end at least, where that leaves one.
    cut = min(max(1, int(TRIMMED_SHARE * len(sites))), (len(sites) - 1) // 2)
    return ordered[cut : len(sites) - cut].mean(dim=0)


AVERAGE = "weighted_average"
"""The one aggregation that weighs sites."""
AGGREGATIONS: dict[str, Callable[[str, Sequence[str], Sequence[float], Read], Tensor]] = {
    AVERAGE: _weighted_average,
    "coordinate_median": _coordinate_median,
    "trimmed_mean": _trimmed_mean,
}
