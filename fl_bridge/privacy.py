"""Clip and noise for a personalized model that leaves its site, and what they are worth (differential privacy).

The Gaussian mechanism (Dwork and Roth, 2014, appendix A): the model's difference to the global one is scaled down to
the norm `clip`, and gets normal noise of standard deviation `noise` x `clip` in each entry. Two models that a site
could share then differ by 2 `clip` at most before the noise, whatever their training data: what is protected is the
whole model of one share, and a patient as part of it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fl_bridge.site_policy import SitePolicy
from iopfl.core.weights import Weights, distance

DELTA = 1e-5
"""For which epsilon is stated."""
_LARGEST_EPSILON = 100.0
"""Above, it promises nothing: an event may become e^100 times as likely."""
_LEAST_VARIANCE = 1e-5


def privatize(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, clip: float, noise: float) -> Weights:
    """A personalized model as it may leave: clipped and with fresh noise. Who calls this twice gives noise away.

    Args:
        weights: floating-point entries of P_k.
        reference: the global model's, to which the difference is clipped.
        clip: largest norm of the difference; 0 = the weights as they are.
        noise: as a multiple of `clip`.
    """
    if not clip:
        return dict(weights)
    norm = distance(weights, reference)
    scale = min(1.0, clip / norm) if norm else 1.0
    private: Weights = {}
    for key, value in reference.items():
        noisy = value.double() + scale * (weights[key].double() - value.double())
        if noise:
            noisy += noise * clip * _draw_normal(value.shape)
        # A variance stays one: noise must not make it negative.
        noisy = noisy.clamp_min(_LEAST_VARIANCE) if key.endswith("running_var") else noisy
        private[key] = noisy.to(value.dtype)
    return private


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


def _draw_normal(shape: torch.Size) -> Tensor:
    """Normal numbers of the system's secure random source: those of torch can be computed from a few of them."""
    bits = np.frombuffer(secrets.token_bytes(8 * shape.numel()), dtype=np.uint64) >> 12
    return torch.special.ndtri(torch.from_numpy((bits.astype(np.float64) + 0.5) * 2.0**-52)).reshape(shape)
