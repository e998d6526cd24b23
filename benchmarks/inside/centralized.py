"""Centralized training on all sites' images together: the ceiling, which no federation may do."""

from __future__ import annotations

from federation import TOGETHER, Federation, Models

SETTINGS: dict[str, float] = {}


def train_round(federation: Federation, models: Models, round_index: int) -> None:
    """One more epoch over everybody's images."""
    models["global"] = federation.train(TOGETHER, models["global"], round_index)
