"""What controller and executor say to each other: three tasks, a few headers, weights as params.

Weights always travel as `FLModel.params`, never in `meta`: FLARE's privacy
filters see params alone. A site answers task `train` with the *difference*
between its local model and the global weights it was given, which is what the
stock filters expect; integer buffers (counters) never leave a site.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from iopfl.base.errors import WeightsError
from iopfl.core.weights import Weights

TASK_TRAIN = "train"
TASK_SHARE = "share_personalized"
TASK_PUBLISH = "publish_bank"

REASON_HEADER = "fl_bridge.reason"
"""Why a site gives no answer, a `Reason`."""

BANK_PARAM = "bank"
"""The one param of `publish_bank`: the bytes of an `.iopfl` file."""


def to_params(weights: Mapping[str, torch.Tensor], *, integers: bool) -> dict[str, np.ndarray]:
    """Weights as FLARE sends them; without `integers` floating-point entries only."""
    return {key: value.numpy() for key, value in weights.items() if integers or value.is_floating_point()}


def from_params(params: Any, *, what: str) -> Weights:
    """Weights from what FLARE received.

    Raises:
        WeightsError: not arrays of numbers under names.
    """
    if not isinstance(params, Mapping):
        raise WeightsError(f"{what}: expected weights by name, given {type(params).__name__}")
    try:
        return {str(key): torch.from_numpy(np.array(value)) for key, value in params.items()}
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{what}: expected arrays of numbers: {error}") from error
