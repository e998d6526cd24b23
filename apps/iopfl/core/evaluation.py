"""Evaluation: a model over a site's labeled images, scored on each image's own grid.

Segmenting and scoring are apart: `Predictor` never sees a label, and what
reads labels here segments nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from iopfl.base.errors import DatasetError, SeriesError
from iopfl.core.answers import Answer, Segmentation
from iopfl.core.metrics import region_dice, surface_distances
from iopfl.core.predictor import Predictor
from iopfl.core.sites import SPLITS, Case, find_cases, labeled, split_cases
from iopfl.core.task import Task
from iopfl.core.transforms import is_picture, read_label
from iopfl.core.work import Progress

T = TypeVar("T")
Follow = Callable[[Case], AbstractContextManager[Progress | None]]


@dataclass(frozen=True)
class CaseScore:
    """Scores of one case, region name -> value; NaN where undefined (`metrics`).

    Attributes:
        stem: the file stem of the image.
        dice: foreground Dice.
        hd95: 95th percentile of the Hausdorff distance, in `unit`.
        assd: average symmetric surface distance, in `unit`.
        unit: mm, or pixels for pictures, which have no spacing.
        answer: where the mask came from.
    """

    stem: str
    dice: dict[str, float]
    hd95: dict[str, float]
    assd: dict[str, float]
    unit: str
    answer: Answer


@dataclass(frozen=True)
class Evaluation:
    """All cases of one model at one site."""

    site: str
    kind: str
    cases: tuple[CaseScore, ...]

    def mean(self, metric: str, region: str | None = None) -> float:
        """Mean of `dice`, `hd95` or `assd` over cases (and regions), without undefined ones; NaN if all are."""
        values = [
            value for case in self.cases for name, value in getattr(case, metric).items() if region in (None, name)
        ]
        defined = [value for value in values if not np.isnan(value)]
        return float(np.mean(defined)) if defined else float("nan")

    def undefined(self, metric: str) -> int:
        """How many values `mean` leaves out."""
        return int(sum(np.isnan(value) for case in self.cases for value in getattr(case, metric).values()))

    @property
    def seconds(self) -> float:
        """Mean seconds per image."""
        return float(np.mean([case.answer.seconds for case in self.cases]))

    def to_dict(self) -> dict[str, Any]:
        """For JSON; undefined values are None."""
        metrics = ("dice", "hd95", "assd")
        return {
            "site": self.site,
            "model": self.kind,
            "images": len(self.cases),
            "unit": self.cases[0].unit,
            **{metric: _finite(self.mean(metric)) for metric in metrics},
            "undefined": {metric: self.undefined(metric) for metric in metrics},
            "seconds": round(self.seconds, 4),
            "cases": [
                {
                    "image": case.stem,
                    **{m: {region: _finite(v) for region, v in getattr(case, m).items()} for m in metrics},
                    **case.answer.to_params(),
                }
                for case in self.cases
            ],
        }


def select_cases(site_folder: Path, task: Task, split: str) -> list[Case]:
    """The labeled cases of a split of a site folder.

    Raises:
        DatasetError: no such split, or no labeled image in it.
    """
    if split not in SPLITS:
        raise DatasetError(f"no split {split!r}: expected one of {', '.join(SPLITS)}")
    cases = labeled(split_cases(find_cases(site_folder), task, site_folder=site_folder)[split])
    if not cases:
        raise DatasetError(f"{site_folder.name}: no labeled image in split {split!r}: add labels under labels/final/")
    return cases


def evaluate(
    predictor: Predictor,
    cases: Sequence[Case],
    kind: str | None,
    *,
    site: str,
    progress: Callable[[int, int], None] | None = None,
    follow: Follow = lambda case: nullcontext(),
    inspect: Callable[[Case, Segmentation], None] | None = None,
    refuse: Callable[[Case, SeriesError], None] | None = None,
) -> Evaluation:
    """Segment and score cases.

    Args:
        predictor: what segments, with the models of a bank.
        cases: labeled.
        kind: which model answers; None = the site's choice. `published` adapts to all images first.
        site: name, for the result.
        progress: told cases done and cases in all.
        follow: gives, for as long as a case takes, what is told how far it is.
        inspect: given each segmentation, e.g. to draw it.
        refuse: given each case whose image or label cannot be used, and why; the others go on. None = it ends there.

    Raises:
        DatasetError: there is no case, or none that can be used.
        SeriesError: a case cannot be used, without `refuse`.
    """
    if not cases:
        raise DatasetError(f"{site}: no labeled image to evaluate on")
    problems: list[SeriesError] = []

    def attempt(work: Callable[[Case], T], case: Case) -> T | None:
        try:
            return work(case)
        except SeriesError as error:
            if refuse is None:
                raise
            problems.append(error)
            refuse(case, error)
            return None

    started = time.monotonic()
    if kind == "published":
        cases = [case for case in cases if attempt(lambda case: predictor.prepare(case.image), case) is not None]
        if cases:
            predictor.adapt_site([case.image for case in cases])
    before = (time.monotonic() - started) / max(1, len(cases))  # offline adaptation is part of what an image costs
    scores = []
    for index, case in enumerate(cases):
        found = attempt(lambda case: _score(predictor, case, kind, before, follow), case)
        if found is not None:
            scores.append(found[0])
            if inspect:
                inspect(case, found[1])
        if progress:
            progress(index + 1, len(cases))
    if not scores:
        raise DatasetError(f"{site}: no labeled image could be evaluated, the first since: {problems[0]}")
    return Evaluation(site, kind or scores[0].answer.model, tuple(scores))


def _score(
    predictor: Predictor, case: Case, kind: str | None, before: float, follow: Follow
) -> tuple[CaseScore, Segmentation]:
    """Segment and score a case; `before` are seconds that its answer took besides."""
    with follow(case) as passes:
        segmentation = predictor.segment(case.image, kind, progress=passes)
    answer = replace(segmentation.answer, seconds=segmentation.answer.seconds + before)
    segmentation = replace(segmentation, answer=answer)
    return score_case(segmentation, case, predictor.task), segmentation


def score_case(segmentation: Segmentation, case: Case, task: Task) -> CaseScore:
    """Score a mask against the case's label.

    Raises:
        DatasetError: the case has no label.
        SeriesError: the label does not fit the image or the task.
    """
    if case.label is None:
        raise DatasetError(f"{case.stem}: expected a label to score against")
    reference = read_label(case.label, task, like=segmentation.image)[0].as_tensor()
    predicted = _classes(segmentation.mask, task)
    picture = is_picture(case.image)
    spacing = (1.0, 1.0, 1.0) if picture else tuple(torch.as_tensor(segmentation.image.pixdim).tolist())
    if picture:  # one slice: in the plane, where surfaces are lines
        predicted, reference, spacing = predicted[..., 0], reference[..., 0], spacing[:2]
    names = list(task.scored_regions)
    hd95, assd = surface_distances(predicted, reference, task, spacing=spacing)
    return CaseScore(
        stem=case.stem,
        dice=dict(zip(names, region_dice(predicted, reference, task).tolist(), strict=True)),
        hd95=dict(zip(names, hd95.tolist(), strict=True)),
        assd=dict(zip(names, assd.tolist(), strict=True)),
        unit="pixels" if picture else "mm",
        answer=segmentation.answer,
    )


def _classes(mask: Tensor, task: Task) -> Tensor:
    """Label values to class indices, (X, Y, Z)."""
    lookup = torch.zeros(256, dtype=torch.long)
    lookup[list(task.label_values)] = torch.arange(task.num_classes)
    return lookup[mask.long()]


def _finite(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 4)
