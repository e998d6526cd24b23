"""What a benchmark found, and what it says in sentences; `report` draws it.

A script fills a `Report` with what `evaluation` and `predictor` gave it; the
sentences are computed from the figures, and say so where routing did not help.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from iopfl.core.answers import Segmentation
from iopfl.core.bank.manifest import Manifest
from iopfl.core.evaluation import CaseScore, Evaluation
from iopfl.core.task import Task

NOTICEABLE = 0.005
"""A difference in mean Dice below this is called none."""

FEWEST = 5
"""Images below which a comparison is not judged."""

KINDS = {
    "global": "global model",
    "local": "local training",
    "personalized": "personalized model",
    "average": "average of the bank",
    "published": "routing as published",
    "routed": "routed",
}
_RESAMPLES = 2000


@dataclass(frozen=True)
class SiteSummary:
    """A site of the benchmark.

    Attributes:
        name: the name of the site.
        is_inside: whether it took part in training.
        train: images it trained on; 0 outside.
        test: images it was scored on.
        description: scanner or camera, population; may be empty.
    """

    name: str
    is_inside: bool
    train: int
    test: int
    description: str = ""


@dataclass(frozen=True)
class Example:
    """An image with several models' masks, to be shown side by side.

    Attributes:
        site: where it comes from.
        stem: the file stem of the image.
        segmentations: kind of the model -> its answer; `routed` says whose knowledge is in it.
        reference: the clinician's label values, (X, Y, Z), or None.
        dice: kind of the model -> mean Dice of this image.
    """

    site: str
    stem: str
    segmentations: Mapping[str, Segmentation]
    reference: Tensor | None = None
    dice: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        title: the title of the page.
        task: segmented.
        created: when, in words.
        sites: inside and outside.
        bank: its manifest.
        inside: evaluations of `global`, `local` and `personalized` at inside sites.
        outside: evaluations of `global`, `average`, `published` and `routed` at outside sites.
        examples: images to show, of outside sites.
        settings: what it was run with, e.g. rounds, seed, hardware: name -> value.
        notes: further paragraphs, e.g. where the data comes from.
    """

    title: str
    task: Task
    created: str
    sites: Sequence[SiteSummary]
    bank: Manifest
    inside: Sequence[Evaluation] = ()
    outside: Sequence[Evaluation] = ()
    examples: Sequence[Example] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """A model against another, image by image, in mean Dice over the regions.

    Attributes:
        images: that both could be scored on.
        difference: mean of model minus other; NaN without images.
        low: lower end of the 95 % bootstrap interval of that mean, over images.
        high: upper end.
        better: images with a higher Dice.
        worse: images with a lower Dice.
    """

    images: int
    difference: float
    low: float
    high: float
    better: int
    worse: int

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `no clear difference`: when it is small, its interval holds zero, or images are few."""
        if self.images >= FEWEST and self.difference >= NOTICEABLE and self.low > 0:
            return "better"
        if self.images >= FEWEST and self.difference <= -NOTICEABLE and self.high < 0:
            return "worse"
        return "no clear difference"


def compare(model: Evaluation, other: Evaluation) -> Comparison:
    """Compare two models on the images that both could be scored on."""
    theirs = {case.stem: mean_dice(case) for case in other.cases}
    pairs = [(mean_dice(case), theirs.get(case.stem, math.nan)) for case in model.cases]
    differences = np.array([mine - yours for mine, yours in pairs if not math.isnan(mine - yours)])
    if not len(differences):
        return Comparison(0, math.nan, math.nan, math.nan, 0, 0)
    drawn = np.random.default_rng(0).integers(0, len(differences), (_RESAMPLES, len(differences)))
    low, high = np.percentile(differences[drawn].mean(1), [2.5, 97.5])
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    return Comparison(len(differences), float(differences.mean()), float(low), float(high), better, worse)


def summarize(report: Report) -> list[str]:
    """The report in sentences, computed from its figures."""
    sentences = []
    for site, models in by_site(report.outside).items():
        if "routed" not in models:
            continue
        for kind in ("global", "average", "published"):
            if kind in models:
                sentences.append(_judge(compare(models["routed"], models[kind]), f"{site} (outside)", "Routing", kind))
        own = [case.answer.share for case in models["routed"].cases if case.answer.share is not None]
        if own:
            sentences.append(
                f"{site} (outside): the experts chose the image's own statistics for {sum(share > 0 for share in own)} "
                f"of {len(own)} images, the stored ones for the others."
            )
    for site, models in by_site(report.inside).items():
        if "personalized" in models and "global" in models:
            comparison = compare(models["personalized"], models["global"])
            sentences.append(_judge(comparison, f"{site} (inside)", "Personalization", "global"))
    return sentences or ["There are no figures to compare."]


def _judge(comparison: Comparison, where: str, what: str, other: str) -> str:
    name = {
        "global": "the global model",
        "average": "the plain average of the bank",
        "published": "routing as published",
    }[other]
    if not comparison.images:
        return f"{where}: {what.lower()} cannot be compared with {name}: no image was scored with both."
    points = 100 * comparison.difference
    verdict = {
        "better": f"{what} helped: {points:.1f} Dice points better than {name}",
        "worse": f"{what} did not help: {-points:.1f} Dice points worse than {name}",
        "no clear difference": f"{what} did not clearly help: {points:+.1f} Dice points against {name}",
    }[comparison.verdict]
    if comparison.images < FEWEST:
        return (
            f"{where}: {comparison.images} image(s) are too few to judge {what.lower()}: {points:+.1f} Dice points "
            f"against {name}, better in {comparison.better} and worse in {comparison.worse}."
        )
    return (
        f"{where}: {verdict} (95 % interval {100 * comparison.low:+.1f} to {100 * comparison.high:+.1f}); better in "
        f"{comparison.better} and worse in {comparison.worse} of {comparison.images} images."
    )


def by_site(evaluations: Iterable[Evaluation]) -> dict[str, dict[str, Evaluation]]:
    """Site -> kind -> evaluation; sites as given, kinds in a fixed order."""
    order = list(KINDS)
    found: dict[str, dict[str, Evaluation]] = {}
    known: Callable[[Evaluation], int] = lambda e: order.index(e.kind) if e.kind in order else len(order)  # noqa: E731
    for evaluation in sorted(evaluations, key=known):
        found.setdefault(evaluation.site, {})[evaluation.kind] = evaluation
    return {site: found[site] for site in dict.fromkeys(evaluation.site for evaluation in evaluations)}


def mean_dice(case: CaseScore) -> float:
    """Mean over the regions that are defined; NaN if none is."""
    defined = [value for value in case.dice.values() if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan
