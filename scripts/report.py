"""The report of a benchmark: one HTML file that needs nothing else, to be read by a clinician or an engineer."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from iopfl.base.errors import ConfigError, DatasetError
from iopfl.base.files import write_bytes
from iopfl.core.answers import Segmentation
from iopfl.core.colors import label_colors
from iopfl.core.evaluation import Evaluation
from iopfl.web import pictures
from scripts.findings import KINDS, Example, Report, by_site, mean_dice, summarize

_METRICS = ("dice", "hd95", "assd")
_COLORS = {
    "global": "#7F7F7F",
    "local": "#CC79A7",
    "personalized": "#0072B2",
    "average": "#E69F00",
    "published": "#56B4E9",
    "routed": "#009E73",
}
_NONE = "n/a"
_HERE = Path(__file__).parent
_STYLES = (_HERE.parent / "apps" / "iopfl" / "web" / "static" / "style.css", _HERE / "report.css")


def write_report(path: Path, report: Report) -> None:
    """Write a report as one self-contained HTML file.

    Raises:
        DatasetError: the file cannot be written.
    """
    content = render_report(report).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    except OSError as error:
        raise DatasetError(f"{path}: the report cannot be written ({error.strerror}): choose another folder") from error


def render_report(report: Report) -> str:
    """A report as HTML."""
    style = "\n".join(path.read_text(encoding="utf-8") for path in _STYLES)
    sections = (
        _section("In short", _paragraphs(summarize(report)), classes="card short"),
        _section("Outside sites: sites the bank never saw", _outside(report)) if report.outside else "",
        _section("Images of outside sites", _examples(report)) if report.examples else "",
        _section("Inside sites: sites that trained", _inside(report)) if report.inside else "",
        _section("The sites", _sites(report)),
        _section("The model bank", _bank(report)),
        _section("How it was run", _settings(report)),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>\n{style}</style></head><body>"
        f"<header><h1>{escape(report.title)}</h1>"
        f"<p>{escape(report.task.description or report.task.name)} · task <code>{escape(report.task.name)}</code>"
        f" · {escape(report.created)}</p><p><span class='tag'>not for clinical use</span></p></header>"
        f"<main>{''.join(sections)}</main>"
        "<footer>A benchmark of a research tool: not a medical device, not for clinical use.</footer></body></html>\n"
    )


def _outside(report: Report) -> str:
    chart = _embed(_bar_chart(report.outside), "Bars of the mean Dice of each model at each outside site")
    return _figures(report.outside) + chart + _expert_weights(report)


def _inside(report: Report) -> str:
    chart = _embed(_bar_chart(report.inside), "Bars of the mean Dice of each model at each inside site")
    return _figures(report.inside) + chart


def _figures(evaluations: Sequence[Evaluation]) -> str:
    """The table of figures; the best value of a site is bold."""
    units = {case.unit for evaluation in evaluations for case in evaluation.cases}
    unit = units.pop() if len(units) == 1 else "mm or pixels"
    heads = ["Site", "Model", "Images", "Dice", f"HD95, {unit}", f"ASSD, {unit}", "Seconds per image"]
    rows = []
    left_out = 0
    for models in by_site(evaluations).values():
        best = {metric: _best(models.values(), metric) for metric in _METRICS}
        for index, (kind, evaluation) in enumerate(models.items()):
            cells = [f'<th scope="row">{escape(evaluation.site) if index == 0 else ""}</th>']
            cells += [f"<td>{escape(KINDS.get(kind, kind))}</td>", _number(str(len(evaluation.cases)))]
            for metric in _METRICS:
                value = _round(evaluation.mean(metric))
                regions = list(evaluation.cases[0].dice) if evaluation.cases else []
                detail = "; ".join(f"{name} {_show(evaluation.mean(metric, name))}" for name in regions)
                small = f"<br><small>{escape(detail)}</small>" if len(regions) > 1 else ""
                cells.append(_number(_show(value) + small, is_best=value == best[metric] and len(models) > 1))
                left_out += evaluation.undefined(metric)
            cells.append(_number(f"{evaluation.seconds:.2f}" if evaluation.cases else _NONE))
            rows.append(f'<tr class="best">{"".join(cells)}</tr>')
    caption = (
        "Means over test images, on each image's own grid. Bold: best of the site. Dice: higher is better, 0 to 1; "
    )
    caption += "HD95 and ASSD: lower is better."
    if left_out:
        caption += f" {left_out} undefined values (nothing there to compare) are left out."
    return _table(heads, rows, caption, first_number=2)


def _expert_weights(report: Report) -> str:
    """Each outside image's weights of the experts, how they chose to see it, and its quality score."""
    cases = [(e.site, case) for e in report.outside if e.kind == "routed" for case in e.cases]
    if not cases:
        return ""
    names = [entry.name for entry in report.bank.entries]
    dice = "Dice" if len(report.task.scored_regions) == 1 else "Mean Dice"
    heads = ["Image", "Site", *names, "Own statistics", "Magnified", "Quality score", dice]
    rows = []
    for site, case in cases:
        weights = case.answer.routing_weights
        cells = [f'<th scope="row">{escape(case.stem)}</th><td>{escape(site)}</td>']
        cells += [_number(f"{100 * weights[name]:.1f} %" if name in weights else _NONE) for name in names]
        share = _NONE if case.answer.share is None else f"{100 * case.answer.share:.0f} %"
        zoomed = "yes" if len(case.answer.zooms) > 1 else "no"
        quality = _NONE if case.answer.quality is None else f"{case.answer.quality:.2f}"
        cells += [_number(share), _number(zoomed), _number(quality), _number(_show(mean_dice(case)))]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    even = 100 / max(1, len(names))
    caption = f"Share of each expert in the routed answer; the uniform average is {even:.1f} %. "
    caption += "The quality score is the agreement of the experts with their mean, and needs no label."
    table = _table(heads, rows, caption, first_number=2)
    return f"<details open><summary>Whose knowledge is in each routed answer</summary>{table}</details>"


def _examples(report: Report) -> str:
    legend = "".join(
        f"<li><span class='swatch' style='background:{color}'></span>{escape(name)}</li>"
        for name, color in label_colors(report.task).items()
    )
    blocks = [_example(example, report) for example in report.examples]
    return f"<ul class='legend'>{legend}</ul>{''.join(blocks)}"


def _example(example: Example, report: Report) -> str:
    """A row of panels of the same slice."""
    if not example.segmentations:
        raise ConfigError(f"example {example.stem}: expected at least one segmentation to show")
    first = next(iter(example.segmentations.values()))
    shown = first.mask if example.reference is None else example.reference
    index = pictures.find_best_slice(first.image, shown)
    panels: list[tuple[str, Tensor | None, str]] = [("image", None, "")]
    for kind, segmentation in example.segmentations.items():
        score = f"Dice {example.dice[kind]:.3f}" if kind in example.dice else ""
        panels.append((KINDS.get(kind, kind), segmentation.mask, score))
    if example.reference is not None:
        panels.append(("clinician's label", example.reference, "the reference"))
    cells = []
    for name, mask, score in panels:
        drawn = pictures.overlay(first.image, mask, report.task, slice_index=index)
        about = f"{example.stem} of {example.site}: {name}"
        small = f" <small>{escape(score)}</small>" if score else ""
        cells.append(
            f"<figure>{_embed(drawn, about, is_photo=True)}<figcaption>{escape(name)}{small}</figcaption></figure>"
        )
    routed = example.segmentations.get("routed")
    count = pictures.count_slices(first.image)
    where = f", slice {index + 1} of {count}" if count > 1 else ""
    title = f"{escape(example.stem)} <small>{escape(example.site)}{where}{_quality(routed)}</small>"
    return f"<article><h3>{title}</h3><div class='panels'>{''.join(cells)}</div></article>"


def _quality(routed: Segmentation | None) -> str:
    if routed is None or routed.answer.quality is None:
        return ""
    return f", quality score of the routed answer {routed.answer.quality:.2f}"


def _sites(report: Report) -> str:
    rows = [
        f'<tr><th scope="row">{escape(site.name)}</th><td>{"inside" if site.is_inside else "outside"}</td>'
        f"{_number(str(site.train))}{_number(str(site.test))}<td>{escape(site.description)}</td></tr>"
        for site in report.sites
    ]
    heads = ["Site", "In the federation", "Trained on", "Scored on", "About"]
    return _table(heads, rows, "Inside: took part in training. Outside: never seen in training.", numbers={2, 3})


def _bank(report: Report) -> str:
    bank = report.bank
    rows = []
    for entry in bank.entries:
        metrics = ", ".join(f"{name} {value:.3f}" for name, value in entry.metrics.items()) or _NONE
        role = "global model" if entry.role == "global" else "personalized model"
        rows.append(
            f'<tr><th scope="row">{escape(entry.name)}</th><td>{role}</td>{_number(str(entry.round_index))}'
            f"{_number(str(entry.samples))}<td>{escape(metrics)}</td></tr>"
        )
    caption = f"Version {bank.version} ({bank.content_id}) of federation {bank.federation}, made {bank.created}."
    heads = ["Expert", "Role", "Round", "Training images", "Validation figures"]
    return _table(heads, rows, caption, numbers={2, 3})


def _settings(report: Report) -> str:
    task = report.task
    values = {
        "Task": task.name,
        "Labels": ", ".join(f"{name} = {value}" for name, value in task.labels.items()),
        "Network": f"{task.network.name}, {task.spatial_dims}D"
        + (f", {task.slices} neighboring slices" if task.slices > 1 else ""),
        "Size": " x ".join(map(str, task.size)),
        "Adaptation": "fast" if task.adaptation.fast else "default",
        **report.settings,
    }
    rows = [f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in values.items()]
    return _table([], rows, "") + _paragraphs(report.notes)


def _bar_chart(evaluations: Sequence[Evaluation]) -> Image.Image:
    """Mean Dice of each model at each site; whiskers are the standard error over images."""
    sites = by_site(evaluations)
    kinds = [kind for kind in KINDS if any(kind in models for models in sites.values())]
    figure = Figure(figsize=(max(6.6, 1.8 + 0.5 * len(kinds) * len(sites)), 3.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(kinds)
    values = []
    for offset, kind in enumerate(kinds):
        for position, models in enumerate(sites.values()):
            dice = (
                [score for case in models[kind].cases if not math.isnan(score := mean_dice(case))]
                if kind in models
                else []
            )
            if not dice:
                continue
            error = float(np.std(dice, ddof=1) / math.sqrt(len(dice))) if len(dice) > 1 else 0.0
            mean = float(np.mean(dice))
            values += [mean - error, mean + error]
            place = position + (offset - (len(kinds) - 1) / 2) * width
            axes.bar(
                place, mean, 0.92 * width, yerr=error, color=_COLORS[kind], error_kw={"lw": 1, "ecolor": "#333333"}
            )
            axes.annotate(
                f"{mean:.3f}", (place, mean + error), (0, 2), textcoords="offset points", ha="center", fontsize=7
            )
    axes.set_xticks(range(len(sites)), list(sites))
    axes.set_ylim(0, min(1.08, 1.15 * max(values, default=0.9)))
    axes.set_ylabel("mean Dice")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles = [Patch(color=_COLORS[kind]) for kind in kinds]
    labels = [KINDS[kind] for kind in kinds]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(kinds)), frameon=False, fontsize=8)
    return pictures.figure_to_image(figure)


def _best(evaluations: Iterable[Evaluation], metric: str) -> float:
    """The best mean of a metric as it is printed; NaN if none is defined."""
    values = [_round(evaluation.mean(metric)) for evaluation in evaluations]
    defined = [value for value in values if not math.isnan(value)]
    return (max if metric == "dice" else min)(defined, default=math.nan)


def _section(title: str, content: str, *, classes: str = "card") -> str:
    return f'<section class="{classes}"><h2>{escape(title)}</h2>{content}</section>'


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def _table(
    heads: Sequence[str],
    rows: Sequence[str],
    caption: str,
    *,
    first_number: int | None = None,
    numbers: set[int] | None = None,
) -> str:
    """A table that scrolls on a narrow screen; columns of numbers are right-aligned."""
    right = numbers or set()
    if first_number is not None:
        right = set(range(first_number, len(heads)))
    cells = "".join(
        f'<th scope="col"{" class=number" if index in right else ""}>{escape(head)}</th>'
        for index, head in enumerate(heads)
    )
    head = f"<thead><tr>{cells}</tr></thead>" if heads else ""
    about = f"<p><small>{escape(caption)}</small></p>" if caption else ""
    return f'{about}<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _number(content: str, *, is_best: bool = False) -> str:
    return f'<td class="number{" best" if is_best else ""}">{content}</td>'


def _round(value: float) -> float:
    return value if math.isnan(value) else round(value, 3)


def _show(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:.3f}"


def _embed(image: Image.Image, about: str, *, is_photo: bool = False) -> str:
    """A picture as part of the file."""
    content, kind = (pictures.to_jpeg(image), "jpeg") if is_photo else (pictures.to_png(image), "png")
    encoded = base64.b64encode(content).decode()
    classes = "photo" if is_photo else "chart"
    return f'<img class="{classes}" alt="{escape(about)}" src="data:image/{kind};base64,{encoded}">'
