"""Networks: MONAI's, built from a task.

The paper's is a 2D U-Net with batch normalization: `BasicUNet`. The others
that routing is tested with stand beside it in `NETWORKS`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import torch
from monai.networks import nets
from torch import nn

from iopfl.base.errors import ConfigError
from iopfl.core.task import Task

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    name: getattr(nets, name) for name in ("BasicUNet", "UNet", "DynUNet", "SegResNet", "AttentionUnet")
}


def build_network(task: Task, *, seed: int | None = None) -> nn.Module:
    """Build a task's network: (B, in_channels, *S) to logits (B, K, *S).

    Args:
        task: says which network, and its channels.
        seed: the seed of the initial weights; the caller's random state stays as it was. None = not seeded.

    Raises:
        ConfigError: an unknown network, or arguments it does not take.
    """
    if task.network.name not in NETWORKS:
        raise ConfigError(f"no network {task.network.name!r}: expected one of {', '.join(NETWORKS)}")
    arguments = {
        "spatial_dims": task.spatial_dims,
        "in_channels": task.in_channels,
        "out_channels": task.num_classes,
        **task.network.args,
    }
    with contextlib.ExitStack() as stack:
        if seed is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.manual_seed(seed)
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # BasicUNet prints its features
        try:
            network = NETWORKS[task.network.name](**arguments)
        except (TypeError, ValueError, KeyError, AssertionError, AttributeError) as error:
            raise ConfigError(
                f"network {task.network.name} does not take {dict(task.network.args)}: {error}"
            ) from error
    if task.spatial_dims == 2:
        # Twice as fast on CPUs, and what tensor cores want; the values are the same.
        network = network.to(memory_format=torch.channels_last)
    return network
