"""Tables, plots and files of the accuracy benchmark."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comparing import Row, compare, judge_quality, select, site_means, spread
from outside import BEST_SIMPLE, FAST, GLOBAL, OURS, PUBLISHED

BARS = (GLOBAL, BEST_SIMPLE, "TENT", PUBLISHED, FAST, OURS)


def write_report(
    out: Path,
    settings: Mapping[str, Any],
    inside: Sequence[Row],
    outside: Sequence[Row],
    inside_order: Sequence[str],
    outside_order: Sequence[str],
) -> str:
    """Write `accuracy.md`, `accuracy.json`, `cases.csv` and the plots; returns the tables."""
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    if inside:
        parts += [
            "Inside: foreground Dice on test images, mean over folds, cases and seeds.",
            _table(inside, inside_order),
        ]
        parts += [_comparisons(inside, OURS, inside_order)]
    if outside:
        parts += ["Outside: foreground Dice on all images, mean over cases and seeds.", _table(outside, outside_order)]
        parts += [_comparisons(outside, OURS, outside_order), _comparisons(outside, FAST, (BEST_SIMPLE,))]
        parts += [_quality(outside)]
        _draw_bars(outside, out / "sites.png")
        _draw_costs(outside, outside_order, out / "cost.png")
    text = "\n\n".join(part for part in parts if part)
    (out / "accuracy.md").write_text(text + "\n", encoding="utf-8")
    rows = [asdict(row) for row in (*inside, *outside)]
    (out / "accuracy.json").write_text(json.dumps({"settings": settings, "rows": rows}, default=str))
    with (out / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", "site", "seed", "method", "case", "dice", "quality"])
        for row in (*inside, *outside):
            head = [row.fold, row.site, row.seed, row.method]
            writer.writerows([*head, case, dice, row.quality.get(case, "")] for case, dice in row.dice.items())
    return text


def _table(rows: Sequence[Row], order: Sequence[str]) -> str:
    """A line a method: each site, mean, standard deviation over seeds, worst site, cost."""
    sites = sorted({row.site for row in rows})
    lines = [["method", "seeds", *sites, "mean", "± seeds", "worst", "s", "passes"]]
    for method in order:
        mine = select(rows, method)
        if not mine:
            continue
        means = site_means(rows, method)
        costs = [np.mean([getattr(row, name) for row in mine]) for name in ("seconds", "forwards")]
        lines.append(
            [
                method,
                str(len({row.seed for row in mine})),
                *[f"{means[site]:.3f}" if site in means else "-" for site in sites],
                f"{np.mean(list(means.values())):.3f}",
                _show(spread(rows, method), "{:.3f}"),
                f"{min(means.values()):.3f}",
                _show(costs[0], "{:.2f}"),
                _show(costs[1], "{:.1f}"),
            ]
        )
    return _markdown(lines)


def _comparisons(rows: Sequence[Row], method: str, order: Sequence[str]) -> str:
    """The method against each other one, on the folds and seeds that both have."""
    lines = [[f"{method} minus", "mean", "95 % interval", "worst site"]]
    for other in order:
        mean, low, high = compare(rows, method, other)
        if other == method or np.isnan(mean):
            continue
        shared = {(row.fold, row.site, row.seed) for row in select(rows, other)}
        paired = [row for row in rows if (row.fold, row.site, row.seed) in shared]
        ours, theirs = site_means(paired, method), site_means(paired, other)
        worst = min(ours, key=lambda site: ours[site] - theirs[site])
        gap = f"{ours[worst] - theirs[worst]:+.3f} ({worst})"
        lines.append([other, f"{mean:+.4f}", f"{low:+.4f} to {high:+.4f}", gap])
    return _markdown(lines) if len(lines) > 1 else ""


def _quality(rows: Sequence[Row]) -> str:
    lines = [["quality score", "rank correlation with Dice", "worst 10 % found"]]
    lines += [[site, f"{r:.2f}", f"{100 * caught:.0f} %"] for site, (r, caught) in judge_quality(rows, OURS).items()]
    return _markdown(lines) if len(lines) > 1 else ""


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as a table that reads well as plain text too."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [
        "| "
        + " | ".join(cell.ljust(width) if not i else cell.rjust(width) for i, (cell, width) in enumerate(pairs))
        + " |"
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if not i else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])


def _show(value: float, form: str) -> str:
    return "-" if np.isnan(value) else form.format(value)


def _draw_bars(rows: Sequence[Row], path: Path) -> None:
    """Mean Dice of the main methods at each site; whiskers are the standard deviation over seeds."""
    methods = [method for method in BARS if select(rows, method)]
    sites = sorted({row.site for row in rows})
    figure = Figure(figsize=(2.4 + 1.7 * len(sites), 3.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(methods))
    for index, method in enumerate(methods):
        values = [[row.mean for row in select(rows, method, site)] for site in sites]
        places = np.arange(len(sites)) + (index - (len(methods) - 1) / 2) * width
        heights = [np.mean(value) if value else np.nan for value in values]
        axes.bar(places, heights, width, yerr=[np.std(value) if value else 0 for value in values], label=method)
    lowest = min(row.mean for method in methods for row in select(rows, method))
    axes.set_ylim(max(0.0, lowest - 0.1))
    axes.set_xticks(range(len(sites)), sites)
    axes.set_ylabel("foreground Dice")
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path)


def _draw_costs(rows: Sequence[Row], order: Sequence[str], path: Path) -> None:
    """Mean Dice against forward-equivalents per image."""
    figure = Figure(figsize=(7.5, 4.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for method in order:
        if not (mine := select(rows, method)) or "by labels" in method:
            continue
        cost, dice = np.mean([row.forwards for row in mine]), np.mean(list(site_means(rows, method).values()))
        axes.plot(cost, dice, "o", color="C1" if method.startswith(OURS) else "C0")
        axes.annotate(method, (cost, dice), textcoords="offset points", xytext=(5, 3), fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("forward-equivalents per image")
    axes.set_ylabel("foreground Dice, mean over sites")
    axes.margins(x=0.25)
    figure.savefig(path)
