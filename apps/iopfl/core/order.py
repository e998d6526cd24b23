"""What is ordered of a site in a round, and what it answers. Next: `site_rounds`, which does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iopfl.base.errors import ConfigError
from iopfl.base.names import check_name

if TYPE_CHECKING:
    from iopfl.core.weights import Weights

MAX_ROUNDS = 1_000_000


@dataclass(frozen=True)
class Order:
    """What a round is known by; a site answers the same order twice with the same answer.

    Attributes:
        federation: id of the federation.
        round_index: from 0.
        base_hash: the hash of the global weights as the controller holds them. It names them; a filter on the
            way (quantization) may change the values that arrive.
    """

    federation: str
    round_index: int
    base_hash: str

    def __post_init__(self) -> None:
        """Check what becomes part of paths and addresses.

        Raises:
            ConfigError: names that could lead elsewhere, or a round that no federation has.
        """
        check_name(self.federation, "a federation id")
        check_name(self.base_hash, "a hash of global weights")
        if not 0 <= self.round_index < MAX_ROUNDS:  # a round that is only claimed must not be the last for ever
            raise ConfigError(f"expected a round from 0 to {MAX_ROUNDS - 1}, given another: update the bridge")

    def to_meta(self) -> dict[str, Any]:
        """As plain values."""
        return {"federation": self.federation, "round_index": self.round_index, "base_hash": self.base_hash}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Order:
        """Read what `to_meta` wrote.

        Raises:
            ConfigError: it is not an order.
        """
        federation, round_index, base_hash = (meta.get(key) for key in ("federation", "round_index", "base_hash"))
        if not (isinstance(federation, str) and type(round_index) is int and isinstance(base_hash, str)):
            raise ConfigError("expected federation, round_index and base_hash, given something else: update the bridge")
        return cls(federation, round_index, base_hash)


@dataclass(frozen=True)
class SiteUpdate:
    """A site's answer to a round.

    Attributes:
        weights: W_k, its local model; only the difference to the global weights leaves the site.
        samples: instances (slices of a 2D task, images of a 3D one) it was trained on.
        metrics: `loss`, `seconds`, and validation Dice: `dice` of the personalized model, `dice_local`,
            `dice_global` of the weights the round began with. Missing where nothing could be validated.
    """

    weights: Weights
    samples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class SharedModel:
    """A site's personalized model on its way into the bank; `round_index` is the last accumulated."""

    weights: Weights
    round_index: int
    samples: int
    metrics: Mapping[str, float]
