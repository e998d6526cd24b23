"""Which of an image's labels is the final one, that training uses: the rule, and consensus of several annotators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iopfl.base.errors import ConfigError
from iopfl.labels.log import History, LabelVersion

MAJORITY, STAPLE = "majority", "staple"
RULES = ("newest", "reviewer:NAME", MAJORITY, STAPLE)

_MARGIN = 1
"""Voxels around all that was drawn, which count as background that everybody saw."""

_MAX_ITERATIONS = 100
"""Of STAPLE; it converges in ten or so."""


@dataclass(frozen=True)
class FinalRule:
    """How the final label follows from the newest label of each annotator.

    Attributes:
        name: `newest`; `reviewer`: the reviewer's, or the newest until there is one; `majority` or `staple`.
        reviewer: the annotator whose label counts.
    """

    name: str = "newest"
    reviewer: str = ""

    @classmethod
    def parse(cls, text: str) -> FinalRule:
        """Read a rule as `--conf final_label` has it.

        Raises:
            ConfigError: there is no such rule.

        >>> FinalRule.parse("reviewer:dr.ruiz").reviewer
        'dr.ruiz'
        """
        name, _, reviewer = text.partition(":")
        if name not in ("newest", "reviewer", MAJORITY, STAPLE) or bool(reviewer) != (name == "reviewer"):
            raise ConfigError(f"final_label: expected {', '.join(RULES)}, given {text!r}")
        return cls(name, reviewer)

    def __str__(self) -> str:
        return f"{self.name}:{self.reviewer}" if self.reviewer else self.name

    def select(self, history: History) -> tuple[LabelVersion, ...]:
        """The version that is final; several, the newest first, where their consensus is; none without labels.

        A consensus is of labels that have a task in common with the newest.
        """
        chosen = history.get(history.chosen or 0)
        if chosen is not None and chosen.can_be_had:
            return (chosen,)
        current = history.current
        if self.name in (MAJORITY, STAPLE):
            return _of_one_task(tuple(current.values()))
        if self.reviewer in current and self.name == "reviewer":
            return (current[self.reviewer],)
        return tuple(current.values())[:1]

    def is_met(self, history: History, number: int | None) -> bool:
        """Whether a version is what the rule selects, or no version where it selects none."""
        selected = self.select(history)
        if len(selected) <= 1:
            return (number or 0) == (selected[0].number if selected else 0)
        sources = tuple(version.number for version in selected)
        return any(version.number == number and version.sources == sources for version in history.versions)


def common_tasks(versions: Sequence[LabelVersion]) -> set[str]:
    """Names of the tasks that all of them are labels for; of one whose tasks are not known, it may be any."""
    known = [set(version.tasks) for version in versions if version.tasks]
    return set.intersection(*known) if known else set()


def _of_one_task(versions: Sequence[LabelVersion]) -> tuple[LabelVersion, ...]:
    """Those that are for the same task as the ones before them."""
    kept: list[LabelVersion] = []
    for version in versions:
        common = common_tasks(kept)
        if not common or not version.tasks or common & set(version.tasks):
            kept.append(version)
    return tuple(kept)


def find_consensus(labels: Sequence[np.ndarray], rule: str) -> np.ndarray:
    """One label out of several of the same image.

    `majority`: each voxel has the value that most labels give it. `staple`: labels are weighed by how well
    each agrees with the consensus (Rohlfing et al., TMI 2004, after Warfield et al., TMI 2004), within the box of
    all that was drawn. A voxel that stays undecided has, of the values that tie, the one in the newest label.

    Args:
        labels: (X, Y, Z) uint8 label values each, the newest first.
        rule: `MAJORITY` or `STAPLE`.

    Returns:
        (X, Y, Z) uint8.
    """
    if len(labels) == 1 or not any(label.any() for label in labels):
        return labels[0].copy()
    box = _find_box(labels)
    cut = np.stack([label[box] for label in labels])  # (L, X', Y', Z')
    consensus = np.zeros_like(labels[0])
    consensus[box] = _staple(cut) if rule == STAPLE else _majority(cut)
    return consensus


def _find_box(labels: Sequence[np.ndarray]) -> tuple[slice, ...]:
    drawn = np.logical_or.reduce([label != 0 for label in labels])
    box = []
    for axis, size in enumerate(drawn.shape):
        others = tuple(other for other in range(drawn.ndim) if other != axis)
        (found,) = np.nonzero(drawn.any(axis=others))
        box.append(slice(max(0, found[0] - _MARGIN), min(size, found[-1] + 1 + _MARGIN)))
    return tuple(box)


def _majority(labels: np.ndarray) -> np.ndarray:
    """Labels (L, *S) to the value most of them give, (*S); a tie goes to the newest that is part of it."""
    votes = (labels[:, None] == labels[None]).sum(axis=1)  # (L, *S): how many give the value that this one gives
    return np.take_along_axis(labels, votes.argmax(axis=0)[None], axis=0)[0]  # the first maximum: the newest


def _staple(labels: np.ndarray) -> np.ndarray:
    """Labels (L, *S) to their STAPLE consensus, (*S)."""
    import SimpleITK as sitk  # noqa: N813  # as its own documentation writes it

    values = np.unique(labels)
    lookup = np.zeros(256, np.uint8)
    lookup[values] = np.arange(len(values))  # the filter's memory grows with the square of the highest value
    undecided = len(values)
    staple = sitk.MultiLabelSTAPLEImageFilter()
    staple.SetLabelForUndecidedPixels(undecided)
    staple.SetMaximumNumberOfIterations(_MAX_ITERATIONS)
    found = sitk.GetArrayFromImage(staple.Execute([sitk.GetImageFromArray(label) for label in lookup[labels]]))
    return np.where(found == undecided, _majority(labels), np.append(values, 0).astype(np.uint8)[found])
