"""What `privacy`'s clip and noise are worth (differential privacy), and a line on it for a site's administrator."""

from __future__ import annotations

import math

from fl_bridge.site_policy import SitePolicy

DELTA = 1e-5
"""For which epsilon is stated."""
_LARGEST_EPSILON = 100.0
"""Above, it promises nothing: an event may become e^100 times as likely."""


def find_epsilon(noise: float, shares: int, *, delta: float = DELTA) -> float:
    """Epsilon of so many shares together; infinite where it would promise nothing.

    The analytic Gaussian mechanism (Balle and Wang, ICML 2018, theorem 8). Shares compose exactly, also where one
    is asked for in the light of another: k of them are one of mu * sqrt(k) (Dong, Roth and Su, 2022, corollary 3.3).

    Args:
        noise: standard deviation, as a multiple of the clip.
        shares: that leave in all.
        delta: of (epsilon, delta).

    >>> round(find_epsilon(2.0, 1), 2), round(find_epsilon(2.0, 4), 2), find_epsilon(0.01, 1)
    (4.38, 10.0, inf)
    """
    if not noise or not shares:
        return math.inf if shares else 0.0
    mu = 2 / noise * math.sqrt(shares)  # two models differ by two clips
    low, high = 0.0, _LARGEST_EPSILON
    if _find_delta(high, mu) > delta:
        return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _find_delta(middle, mu) > delta else (low, middle)
    return high


def describe_sharing(policy: SitePolicy) -> str:
    """What leaves by a site's policy and what its noise is worth, in a line for its administrator."""
    if not policy.share_personalized:
        return "keeps its personalized model"
    if not policy.clip:
        return "shares its personalized model as it is, without clip or noise"
    if not policy.noise:
        return f"shares its personalized model clipped to {policy.clip:g}, without noise: no differential privacy"
    once = f"{_describe_epsilon(find_epsilon(policy.noise, 1))} a share"
    together = f"{_describe_epsilon(find_epsilon(policy.noise, policy.max_shares))} for max_shares {policy.max_shares}"
    bound = together if policy.max_shares else "no bound for all shares together, as max_shares is 0"
    return (
        f"shares its personalized model clipped to {policy.clip:g} with noise {policy.noise:g}: {once}, {bound} "
        f"(delta {DELTA:g}); the updates of rounds leave without noise"
    )


def _describe_epsilon(epsilon: float) -> str:
    return f"epsilon {epsilon:.3g}" if math.isfinite(epsilon) else f"epsilon above {_LARGEST_EPSILON:g}, no protection"


def _find_delta(epsilon: float, mu: float) -> float:
    return _normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * _normal(-mu / 2 - epsilon / mu)


def _normal(value: float) -> float:
    """The normal distribution's cumulative function, exact in its lower tail."""
    return math.erfc(-value / math.sqrt(2)) / 2
