"""What a federation did, in lines for a terminal."""

from __future__ import annotations

from typing import Any


def describe_round(record: dict[str, Any], rounds: int) -> list[str]:
    """A finished round as lines, one per site: validation Dice of the weights it began with, and of P_k."""
    name = f"round {record['round_index'] + 1}/{rounds}"
    width = max(map(len, record["sites"]), default=0)
    return [f"{name}  {site:{width}}  {describe_site(fate)}" for site, fate in sorted(record["sites"].items())]


def describe_site(fate: dict[str, Any]) -> str:
    """What a site did, in one line."""
    if "reason" in fate:
        return f"{fate['status']}: {fate['reason']}"
    parts = [f"Dice global {_figure(fate, 'dice_global')}  personalized {_figure(fate, 'dice')}"]
    if "capped_from" in fate:
        parts.append(f"weight {fate['weight']:.2f}, capped: {fate['capped_from']:.2f} by its count")
    if "loss" in fate:
        parts.append(f"loss {fate['loss']:.3f}")
    if "seconds" in fate:
        parts.append(f"{fate['seconds']:.1f} s")
    return "  ".join(parts)


def _figure(fate: dict[str, Any], key: str) -> str:
    return f"{fate[key]:.3f}" if key in fate else "-"
