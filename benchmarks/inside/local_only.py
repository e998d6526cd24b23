"""Local only: a site by itself. The setup has one site."""

from __future__ import annotations

from federation import Federation, Models

SETTINGS: dict[str, float] = {}


def train_round(federation: Federation, models: Models, round_index: int) -> None:
    """One more epoch at the site."""
    (site,) = federation.sites
    models["global"] = federation.train(site, models["global"], round_index)
