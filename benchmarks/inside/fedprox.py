"""FedProx (Li et al., MLSys 2020): FedAvg with a pull toward the global weights."""

from __future__ import annotations

from federation import Federation, Models
from inside import fedavg

SETTINGS = {"proximal_weight": 0.01}


def train_round(federation: Federation, models: Models, round_index: int) -> None:
    """As FedAvg, with the proximal term."""
    fedavg.train_global(federation, models, round_index, **SETTINGS)
