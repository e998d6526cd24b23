"""Rows of results: means over sites and seeds, and paired bootstrap intervals over cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

RESAMPLES = 10_000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Row:
    """One method with one seed at one site of one fold.

    Attributes:
        fold: the site that was outside of the federation.
        site: where the cases are from; the outside site, or an inside one.
        seed: the seed of the federation.
        method: name in the table.
        dice: case -> foreground Dice on the case's own grid; mean over the task's regions.
        seconds: seconds per image.
        forwards: forward-equivalents per image.
        quality: case -> quality score without labels, where the method gives one.
    """

    fold: str
    site: str
    seed: int
    method: str
    dice: dict[str, float]
    seconds: float = float("nan")
    forwards: float = float("nan")
    quality: dict[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Over cases; undefined ones are left out."""
        return float(np.nanmean(list(self.dice.values())))


def select(rows: Sequence[Row], method: str, site: str | None = None) -> list[Row]:
    """A method's rows, at a site."""
    return [row for row in rows if row.method == method and site in (None, row.site)]


def site_means(rows: Sequence[Row], method: str) -> dict[str, float]:
    """Mean over cases, folds and seeds at each site."""
    sites = sorted({row.site for row in rows})
    return {
        site: float(np.mean([row.mean for row in found])) for site in sites if (found := select(rows, method, site))
    }


def spread(rows: Sequence[Row], method: str) -> float:
    """Standard deviation over seeds of the mean over sites; NaN with one seed."""
    seeds = sorted({row.seed for row in select(rows, method)})
    means = [np.mean(list(site_means([row for row in rows if row.seed == seed], method).values())) for seed in seeds]
    return float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")


def paired_differences(rows: Sequence[Row], method: str, other: str) -> dict[str, np.ndarray]:
    """Site -> difference of each case, mean over the folds and seeds that both methods have."""
    differences: dict[str, dict[str, list[float]]] = {}
    theirs = {(row.fold, row.site, row.seed): row for row in select(rows, other)}
    for row in select(rows, method):
        pair = theirs.get((row.fold, row.site, row.seed))
        for case, dice in row.dice.items() if pair else ():
            assert pair is not None
            differences.setdefault(row.site, {}).setdefault(case, []).append(dice - pair.dice[case])
    return {site: np.array([np.nanmean(values) for values in cases.values()]) for site, cases in differences.items()}


def compare(rows: Sequence[Row], method: str, other: str, *, seed: int = 0) -> tuple[float, float, float]:
    """Mean difference and its 95 % interval: paired bootstrap over the cases of each site, sites counting alike."""
    sites = [values[~np.isnan(values)] for values in paired_differences(rows, method, other).values()]
    sites = [values for values in sites if len(values)]
    if not sites:
        return (float("nan"),) * 3
    random = np.random.default_rng(seed)
    draws = np.mean([random.choice(values, (RESAMPLES, len(values))).mean(axis=1) for values in sites], axis=0)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(np.mean([values.mean() for values in sites])), float(low), float(high)


def judge_quality(rows: Sequence[Row], method: str, *, worst_share: float = 0.1) -> dict[str, tuple[float, float]]:
    """How far the quality score knows the true Dice, site by site and over all.

    Returns:
        Site -> Spearman correlation, and the share of the worst cases that are among as many of lowest quality.
    """
    from scipy.stats import spearmanr

    found = {}
    for site in [*sorted({row.site for row in rows}), "all"]:
        pairs = [
            (row.quality[case], dice)
            for row in select(rows, method, None if site == "all" else site)
            for case, dice in row.dice.items()
            if case in row.quality and not np.isnan(dice)
        ]
        if len(pairs) < 3:
            continue
        quality, dice = np.array(pairs).T
        count = max(1, round(worst_share * len(dice)))
        caught = len(set(np.argsort(quality)[:count]) & set(np.argsort(dice)[:count])) / count
        found[site] = (float(spearmanr(quality, dice).statistic), caught)
    return found
