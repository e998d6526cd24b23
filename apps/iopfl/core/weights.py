"""Weights outside a network: snapshot, average, check, hash, read and write.

`snapshot` is the only way weights leave a network: a live `state_dict` aliases
it, and the next step of training would overwrite what was kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from iopfl.base.errors import WeightsError
from iopfl.base.files import write_bytes

Weights = dict[str, Tensor]


def snapshot(network: nn.Module) -> Weights:
    """Copy a network's parameters and buffers to the CPU; later training does not change the copy."""
    return {key: value.detach().cpu().clone().contiguous() for key, value in network.state_dict().items()}


def average(models: Sequence[Mapping[str, Tensor]], shares: Sequence[float] | None = None) -> Weights:
    """Average models, by `shares` or uniformly.

    Normalization statistics are averaged as parameters are; integer buffers
    (`num_batches_tracked`) are those of the first model, as they have no mean.

    Args:
        models: the same keys and shapes in each.
        shares: non-negative, one per model, e.g. sample counts; normalized here.

    Raises:
        WeightsError: no models, or shares that do not fit them.
    """
    shares = [1.0] * len(models) if shares is None else list(shares)
    total = math.fsum(shares)
    if not models or len(shares) != len(models) or min(shares) < 0 or not 0 < total < math.inf:
        raise WeightsError(f"expected a non-negative share for each of {len(models)} models, given {shares}")
    mean: Weights = {}
    for key, first in models[0].items():
        if not first.is_floating_point():
            mean[key] = first.clone()
            continue
        # In double, in the order given: the sum of many sites keeps its last digits and is reproducible.
        double = torch.zeros_like(first, dtype=torch.float64)
        for model, share in zip(models, shares, strict=True):
            double += model[key].double() * (share / total)
        mean[key] = double.to(first.dtype)
    return mean


def check_weights(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, what: str) -> None:
    """Check that weights are those of the reference's network, and finite.

    Args:
        weights: to be checked.
        reference: the expected keys, shapes and types.
        what: who sent them or where they lie, for the message.

    Raises:
        WeightsError: names the first wrong key and what is wrong with it.
    """
    missing, unexpected = sorted(set(reference) - set(weights)), sorted(set(weights) - set(reference))
    if missing or unexpected:
        raise WeightsError(
            f"{what}: not the weights of this network: missing {missing[:5] or 'none'}, "
            f"unexpected {unexpected[:5] or 'none'} of {len(reference)} keys"
        )
    for key, expected in reference.items():
        given = weights[key]
        if given.shape != expected.shape or given.dtype != expected.dtype:
            raise WeightsError(
                f"{what}: {key}: expected {tuple(expected.shape)} {expected.dtype}, "
                f"given {tuple(given.shape)} {given.dtype}"
            )
        if given.is_floating_point() and not torch.isfinite(given).all():
            raise WeightsError(f"{what}: {key} holds NaN or infinity")


def floating(weights: Mapping[str, Tensor]) -> Weights:
    """The floating-point entries: those that travel between a site and its federation."""
    return {key: value for key, value in weights.items() if value.is_floating_point()}


def complete(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Weights:
    """Given entries, and the reference's where there is none (integer buffers), in the reference's order."""
    return {key: weights[key] if key in weights else value.clone() for key, value in reference.items()}


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Euclidean norm of the difference over all floating-point entries."""
    squares = (
        (first[key].double() - value.double()).square().sum().item()
        for key, value in second.items()
        if value.is_floating_point()
    )
    return math.sqrt(math.fsum(squares))


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of keys, types, shapes and values, in key order, as hex."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def serialize(weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Weights as the bytes of a safetensors file."""
    return save({key: value.contiguous() for key, value in weights.items()}, dict(metadata or {}))


def write_weights(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    write_bytes(path, serialize(weights, metadata))


def read_weights(path: Path) -> tuple[Weights, dict[str, str]]:
    """Read a safetensors file: weights and metadata.

    Raises:
        WeightsError: no such file, or not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path.name}: expected a whole safetensors file: {error}") from error
