"""Inside personalization: a site's accumulated model (IOP-FL, section III-B).

`P_k^t = alpha * P_k^(t-1) + (1 - alpha) * W_k^t`, with `P_k^0 = W_k^0`: `alpha`
weighs the history, `W_k^t` is the site's local model after round t. P_k never
goes back into training. It holds every parameter and the normalization
statistics. Next: `bank`, which collects P_k of all sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from iopfl.base.errors import WeightsError
from iopfl.core.weights import Weights, check_weights, read_weights, write_weights


@dataclass(frozen=True)
class PersonalizedModel:
    """P_k of one site.

    Attributes:
        weights: P_k after `round_index`; a snapshot, shared with nothing.
        round_index: the last round that was accumulated, from 0.
    """

    weights: Weights
    round_index: int

    def accumulate(self, local_model: Mapping[str, Tensor], *, round_index: int, alpha: float) -> PersonalizedModel:
        """P_k after one more round; itself when that round was accumulated before.

        A round can reach a site twice (a lost answer, a restart), and must
        count once. Integer buffers are copied from the local model.

        Raises:
            WeightsError: the local model is another network's, or not finite.
        """
        if round_index <= self.round_index:
            return self
        check_weights(local_model, self.weights, what=f"local model of round {round_index}")
        weights = {
            key: alpha * self.weights[key] + (1 - alpha) * value if value.is_floating_point() else value.clone()
            for key, value in local_model.items()
        }
        return PersonalizedModel(weights, round_index)

    @classmethod
    def start(cls, local_model: Mapping[str, Tensor], *, round_index: int) -> PersonalizedModel:
        """P_k of the first round a site takes part in: its local model, copied."""
        return cls({key: value.clone() for key, value in local_model.items()}, round_index)

    def save(self, path: Path) -> None:
        """Write P_k and its round to one safetensors file, whole or not at all."""
        write_weights(path, self.weights, {"round_index": str(self.round_index)})

    @classmethod
    def load(cls, path: Path) -> PersonalizedModel:
        """Read what `save` wrote.

        Raises:
            WeightsError: the file is missing, damaged or not a personalized model.
        """
        weights, metadata = read_weights(path)
        if not metadata.get("round_index", "").isdecimal():
            raise WeightsError(f"{path.name}: expected a personalized model with its round, found no round_index")
        return cls(weights, int(metadata["round_index"]))
