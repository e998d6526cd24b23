"""Outside personalization: route a bank to one series by the agreement of its experts, without labels (IOP-FL, III-C).

The paper adapts routers by gradient; here the experts vote, which costs
forward passes only, has nothing to tune at a site and cannot collapse:

1. each expert segments a few instances, with the stored statistics of normalization and with the series' own;
   the own ones are used unless the experts agree clearly more without; where they hardly agree either way,
   nothing speaks for leaving the global model, which answers as it is;
2. an expert counts by its agreement with the mean of those that vote: that is the router;
3. a magnified view of the series joins in where the experts agree as well on it;
4. the mixture, with the series' statistics frozen, is folded into plain networks, one a magnification.

Episodic: every series starts anew. `published` holds the published recipe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from iopfl.core.agreement import agreements, hide
from iopfl.core.inference import average, count_windows, magnify, predict_instances, predict_slabs
from iopfl.core.planning import make_plan
from iopfl.core.routing import RoutedNetwork
from iopfl.core.sampling import sample_instances, sample_padding
from iopfl.core.task import Task
from iopfl.core.transforms import from_instances
from iopfl.core.views import View, views_of
from iopfl.core.work import Work

_KEPT_VOTES = 2**24
"""Numbers of the experts' votes that are kept with a series, at two bytes each."""
_Slabs = Iterable[Tensor]


@dataclass(frozen=True)
class Part:
    """A plain network of the series' mixture, and what it is to see.

    Attributes:
        network: folded; the series' statistics at this magnification are in it.
        zoom: magnification of the image.
        views: what its prediction averages over.
    """

    network: nn.Module
    zoom: float
    views: tuple[View, ...]


@dataclass(frozen=True)
class AdaptedSeries:
    """What adaptation gives for one series.

    Attributes:
        parts: count alike in the prediction.
        share: the share of the series' own statistics that was chosen.
        quality: agreement of the experts with their mean, 0 to 1, on the instances looked at.
        routing_weights: (E,), of every layer.
        seconds: that it took.
        voted_share: the share with which the experts voted, which is not `share` where they hardly agreed.
        votes: class probabilities (E, N, K, *S) float16 of those that voted, where they saw the whole series then.
        shortened: what was left out to stay within a time budget, in words.
        voters: experts that voted.
    """

    parts: tuple[Part, ...]
    share: float
    quality: float
    routing_weights: Tensor
    seconds: float
    voted_share: float = 0.0
    votes: Tensor | None = None
    shortened: str = ""
    voters: int = 0

    def count_map_passes(self, windows: int) -> int:
        """Passes of `RoutingAdapter.predict_voters`, where one view takes `windows`."""
        return 0 if self.votes is not None else windows * self.voters

    def predict_slabs(
        self, volume: Tensor, task: Task, *, device: torch.device | str = "cpu", work: Work | None = None
    ) -> Iterator[Tensor]:
        """Class probabilities of the series, a prepared image (C, X, Y, Z): as `inference.predict_slabs`."""
        if work is not None:
            work.expect(count_windows(volume, task) * sum(len(part.views) for part in self.parts))
        return average(
            predict_slabs(part.network, volume, task, device=device, views=part.views, zoom=part.zoom, work=work)
            for part in self.parts
        )

    def predict(self, volume: Tensor, task: Task, *, device: torch.device | str = "cpu") -> Tensor:
        """All of them at once, (K, X, Y, Z): for images that are small."""
        return torch.cat(list(self.predict_slabs(volume, task, device=device)), dim=3)


@dataclass(frozen=True)
class _Vote:
    """How far each expert agrees with the mean of those that vote, (E,), on the instances seen in one way.

    `answers` are kept where the instances are the whole series.
    """

    share: float
    by_expert: Tensor
    answers: Tensor | None = None

    @property
    def agreement(self) -> float:
        return float(self.by_expert.mean())


class RoutingAdapter:
    """Adapts a routed network, one series at a time.

    Args:
        network: routed per series, with normalization.
        task: its adaptation settings are read.
        device: where to run.
        budget: seconds that the passes of an answer may take; None = as long as they take.
    """

    def __init__(
        self,
        network: RoutedNetwork,
        task: Task,
        *,
        device: torch.device | str = "cpu",
        budget: float | None = None,
    ) -> None:
        self.network = network.to(device).eval()
        self.task = task
        self.device = torch.device(device)
        self.settings = task.adaptation.effective
        self._budget = budget
        self._work = Work()
        self._sees_all = False
        self._padding: Tensor | None = None

    @property
    def _voters(self) -> int:
        return min(self.network.num_experts, self.settings.max_voters)

    @torch.no_grad()
    def __call__(
        self,
        volume: Tensor,
        *,
        padding: Tensor | None = None,
        work: Work | None = None,
        pace: float | None = None,
        with_mask: bool = True,
        with_map: bool = False,
    ) -> AdaptedSeries:
        """Adapt to a series. Nothing of it stays in the adapter.

        Args:
            volume: a prepared image, (C, X, Y, Z).
            padding: where it is no image, (X, Y, Z) bool; None = nowhere.
            work: is told of each pass.
            pace: seconds of a pass, where they are known; without, the budget is not looked at.
            with_mask: whether the series is to be segmented then.
            with_map: whether each expert that votes is to segment it (`predict_voters`).

        Raises:
            CancelledError: `work` was cancelled.
        """
        clock, self._work = _Clock(self.settings.seconds), work or Work()
        instances = sample_instances(volume, self.task, self.settings.max_instances).to(self.device)
        self._padding = sample_padding(padding, self.task, self.settings.max_instances)
        plan = make_plan(
            self.task,
            count_windows(volume, self.task),
            experts=self.network.num_experts,
            instances=len(instances),
            pace=pace,
            budget=self._budget,
            with_mask=with_mask,
            with_map=with_map,
        )
        self.settings, passes = plan.settings, plan.views
        self._work.expect(plan.passes, pace)
        try:
            self._sees_all = _is_whole(instances, volume, self.task)
            vote = self._choose_share(instances, clock)
            is_evident = vote.agreement >= self.settings.evidence
            zooms = self._choose_zooms(instances, vote, clock) if is_evident and passes > 1 else [1.0]
            routing_weights = self._weigh(vote) if is_evident else self._only_global()
            share = vote.share if is_evident else 0.0
            self.network.route(routing_weights)
            parts = []
            for zoom in zooms:
                self.network.set_share(share)
                self.network.freeze_statistics([magnify(instances, self.task, zoom)])
                views = divide_views(self.task, passes, zoom, among=len(zooms))
                parts.append(Part(self.network.fold(), zoom, tuple(views)))
            return AdaptedSeries(
                tuple(parts),
                share,
                vote.agreement,
                routing_weights,
                clock.seconds,
                vote.share,
                vote.answers,
                plan.shortened,
                self._voters,
            )
        finally:
            self.reset()

    @torch.no_grad()
    def predict_voters(
        self, volume: Tensor, series: AdaptedSeries, work: Work | None = None, pace: float | None = None
    ) -> Iterator[_Slabs]:
        """What each expert that voted says of the whole series by itself, with the statistics that it voted with.

        Where all of it was seen for the vote, no pass is needed; otherwise it is one view of each, of as many as the
        budget has time for, two at least: a map may be asked for that the series' plan did not know of.

        Args:
            volume: the prepared image (C, X, Y, Z) that was adapted to.
            series: what adaptation gave for it.
            work: is told of each pass.
            pace: as in adaptation.

        Returns:
            For one expert after the other, slabs as `inference.predict_slabs` gives them; the one before must be done.
        """
        work = work or Work()
        if series.votes is not None:
            yield from ([from_instances(answer.float(), self.task)] for answer in series.votes)
            return
        windows = count_windows(volume, self.task)
        if pace is not None and self._budget is not None:
            most = max(2, int(self._budget / (windows * pace)))
            series = replace(series, voters=min(series.voters, most))
        work.expect(series.count_map_passes(windows), pace)
        instances = sample_instances(volume, self.task, self.settings.max_instances).to(self.device)
        for expert in range(series.voters):
            try:
                with self.network.only(expert):
                    self.network.set_share(series.voted_share)
                    self.network.freeze_statistics([instances])
                    alone = self.network.fold()
            finally:
                self.reset()
            yield predict_slabs(alone, volume, self.task, device=self.device, work=work)

    def reset(self) -> None:
        """Back to the uniform average and the stored statistics, bit for bit."""
        self._padding = None
        self.network.route(None)
        self.network.set_share(0.0)
        self.settings = self.task.adaptation.effective

    def _choose_share(self, instances: Tensor, clock: _Clock) -> _Vote:
        """The largest share of the series' statistics under which the experts agree about as much as under the best."""
        votes: list[_Vote] = []
        for share in sorted(self.settings.shares):
            if votes and clock.is_over:
                break
            votes.append(self._vote(instances, share))
        best = max(vote.agreement for vote in votes)
        return [vote for vote in votes if vote.agreement >= best - self.settings.tolerance][-1]

    def _choose_zooms(self, instances: Tensor, vote: _Vote, clock: _Clock) -> list[float]:
        """The image as it is, and the magnifications under which the experts agree about as much."""
        chosen = [1.0]
        if self.task.spacing is not None:  # resampled to mm: anatomy has one size already
            return chosen
        for zoom in self.settings.zooms:
            if clock.is_over or zoom == 1.0:
                continue
            if self._vote(instances, vote.share, zoom).agreement >= vote.agreement - self.settings.tolerance:
                chosen.append(zoom)
        return chosen

    def _only_global(self) -> Tensor:
        """Routing weights (E,) of the bank's first expert alone, which is the global model."""
        weights = torch.zeros(self.network.num_experts)
        weights[0] = 1.0
        return weights

    def _weigh(self, vote: _Vote) -> Tensor:
        """Routing weights (E,): of the voters by their agreement; an expert that did not vote counts as their mean."""
        count = self.network.num_experts
        weights = torch.full((count,), 1 / count)
        weights[: self._voters] = (vote.by_expert / self.settings.temperature).softmax(0) * self._voters / count
        return weights

    def _vote(self, instances: Tensor, share: float, zoom: float = 1.0) -> _Vote:
        self.network.set_share(share)
        answers = []
        for expert in range(self._voters):
            with self.network.only(expert):
                answer = predict_instances(self.network, instances, self.task, zoom=zoom, work=self._work)
                answers.append(hide(answer, self._padding))
        experts = torch.stack(answers)  # (E, N, K, *S)
        is_kept = self._sees_all and zoom == 1.0 and experts.numel() <= _KEPT_VOTES
        return _Vote(share, agreements(experts, experts.mean(0)), experts.half().cpu() if is_kept else None)


def divide_views(task: Task, passes: int, zoom: float, *, among: int) -> Sequence[View]:
    """The views of one magnification, of `among` that share the passes; those of the image itself come first.

    A magnified pass costs more, so there are fewer; they begin at the other end, to see what the others do not.
    """
    views = views_of(task)
    if among == 1:
        return views[:passes]
    share = max(1, passes // among)
    return views[:share] if zoom == 1.0 else views[::-1][: math.ceil(share / zoom**2)]


def _is_whole(instances: Tensor, volume: Tensor, task: Task) -> bool:
    """Whether instances (N, C, *S) are all of a prepared image (C, X, Y, Z)."""
    if task.spatial_dims == 2:
        return len(instances) == volume.shape[3]
    return tuple(volume.shape[1:]) == task.size


class _Clock:
    """Time budget of one adaptation."""

    def __init__(self, budget: float) -> None:
        self._started, self._budget = time.monotonic(), budget

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def is_over(self) -> bool:
        return self.seconds > self._budget
