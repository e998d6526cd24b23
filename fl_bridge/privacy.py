"""Clip and noise for a personalized model that leaves its site; what they are worth: `epsilon`.

The Gaussian mechanism (Dwork and Roth, 2014, appendix A): the model's difference to the global one is scaled down to
the norm `clip`, and gets normal noise of standard deviation `noise` x `clip` in each entry. Two models that a site
could share then differ by 2 `clip` at most before the noise, whatever their training data: what is protected is the
whole model of one share, and a patient as part of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from iopfl.core.weights import Weights, distance

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


def _draw_normal(shape: torch.Size) -> Tensor:
    """Normal numbers of the system's secure random source: those of torch can be computed from a few of them."""
    bits = np.frombuffer(secrets.token_bytes(8 * shape.numel()), dtype=np.uint64) >> 12
    return torch.special.ndtri(torch.from_numpy((bits.astype(np.float64) + 0.5) * 2.0**-52)).reshape(shape)
