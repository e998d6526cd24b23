"""Numbers of how many bits training computes with, by device."""

from __future__ import annotations

import functools

import torch


def autocast(device: torch.device, *, spatial_dims: int) -> torch.autocast:
    """Mixed precision where the device has instructions for it: float16 on CUDA, bfloat16 on some CPUs for 2D networks.

    Weights, statistics, losses and updates stay in float32. On a CPU the bfloat16 gradients of 3D convolutions
    (torch 2.14.1, oneDNN) depend on what memory held before, and are NaN at times.
    """
    if device.type == "cpu":
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=spatial_dims == 2 and _has_bfloat16())
    return torch.autocast(device.type, enabled=device.type == "cuda")


@functools.cache
def _has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
