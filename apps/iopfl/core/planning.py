"""Which passes a routed answer takes: those of its task's settings, or fewer where a time budget allows no more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from iopfl.core.task import Adaptation, Task
from iopfl.core.work import Work

_WORTH_A_TRIAL = 100
"""Passes from which a few beforehand, to learn what one takes, are next to nothing."""


@dataclass(frozen=True)
class Plan:
    """What a routed answer will do.

    Attributes:
        settings: the task's settings of adaptation, as they are in effect.
        views: the views of the final prediction.
        passes: in all, at most.
        shortened: what was left out to stay within the budget, in words; empty = nothing.
    """

    settings: Adaptation
    views: int
    passes: int
    shortened: str = ""


def count_views(settings: Adaptation, windows: int) -> int:
    """Views that the final prediction may take of a series: fewer for a large one, one at least.

    Args:
        settings: the task's settings of adaptation, as they are in effect.
        windows: passes of one view (`count_windows`).
    """
    return max(1, min(settings.max_views, settings.max_passes // windows))


def make_plan(
    task: Task,
    windows: int,
    *,
    experts: int,
    instances: int,
    pace: float | None = None,
    budget: float | None = None,
    with_mask: bool = True,
    with_map: bool = False,
) -> Plan:
    """The passes of a routed answer: all that the settings say, else fewer views, else those of `fast` and one view.

    Args:
        task: its adaptation settings are read.
        windows: passes of one view.
        experts: in the bank.
        instances: that each expert looks at.
        pace: seconds of a pass; None = not known.
        budget: seconds that all passes may take; None = as long as they take.
        with_mask: whether the mixture is to segment the series.
        with_map: whether each expert that votes is to segment it too, in one view (`find_disagreement`).
    """

    def plan(settings: Adaptation, allowed: float | None = None) -> Plan:
        voters = min(experts, settings.max_voters)
        looks = len(settings.shares) + (len(settings.zooms) if task.spacing is None else 0)
        others = looks * voters * instances + (voters * windows if with_map else 0)
        views = count_views(settings, windows)
        if allowed is not None and with_mask:
            views = max(1, min(views, int((allowed - others) // windows)))
        return Plan(settings, views, others + (views * windows if with_mask else 0))

    usual = plan(task.adaptation.effective)
    if pace is None or budget is None or usual.passes * pace <= budget:
        return usual
    fast = replace(task.adaptation, fast=True).effective
    found = usual
    for settings in (usual.settings, fast):
        found = plan(settings, budget / pace)
        if found.passes * pace <= budget:
            break
    left = []
    if with_mask and found.views < usual.views:
        left.append(f"{found.views} of {usual.views} views")
    before, after = (min(experts, one.settings.max_voters) for one in (usual, found))
    if after < before:
        left.append(f"{after} of {before} experts asked")
    if len(found.settings.zooms) < len(usual.settings.zooms) and task.spacing is None and with_mask and usual.views > 1:
        left.append("no magnification")
    what = ", ".join(left) or "nothing could be left out"
    end = "" if found.passes * pace <= budget else ", which is not enough"
    return replace(found, shortened=f"{what}, to take at most {budget:.0f} s{end}")


class Paces:
    """Seconds that a pass takes on this machine, by what it is a pass of: as in the answer before, else by a trial."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def find(
        self, name: str, passes: int, sample: Callable[[], Tensor], run: Callable[[Tensor], object]
    ) -> float | None:
        """Seconds of a pass; None where the answer is too short for a trial.

        Args:
            name: the name of what answers.
            passes: the number of passes of the answer.
            sample: gives at least one instance, (N, in_channels, *S).
            run: takes the passes of some instances.
        """
        if name not in self._seconds and passes >= _WORTH_A_TRIAL:
            instances = sample()
            run(instances[:1])  # the first one takes longer
            started = time.monotonic()
            run(instances[1:] if len(instances) > 1 else instances)
            self._seconds[name] = (time.monotonic() - started) / max(1, len(instances) - 1)
        return self._seconds.get(name)

    def learn(self, name: str, work: Work) -> None:
        """Take down what the passes of an answer took."""
        if (pace := work.pace) is not None:
            self._seconds[name] = pace
