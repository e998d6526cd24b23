"""From an image file to a mask on its own grid: what the server, the command line and the benchmark call.

A model's kind is one of `KINDS`; the result says which model answered and
whose knowledge is in it.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from iopfl.base.errors import ConfigError
from iopfl.core.adaptation import AdaptedSeries, RoutingAdapter
from iopfl.core.agreement import expert_agreement, hide
from iopfl.core.answers import Answer, Segmentation
from iopfl.core.bank.bank import ModelBank
from iopfl.core.disagreement import find_disagreement
from iopfl.core.inference import count_windows, predict_instances, predict_slabs
from iopfl.core.measuring import find_affine, measure
from iopfl.core.memory import check_room
from iopfl.core.networks import build_network
from iopfl.core.planning import Paces
from iopfl.core.published import adapt_published, predict_published
from iopfl.core.routing import RoutedNetwork, route_network
from iopfl.core.sampling import Samples, sample_instances, sample_padding, sample_places
from iopfl.core.task import Task
from iopfl.core.transforms import Preprocessing, read_image
from iopfl.core.weights import Weights, hash_weights
from iopfl.core.work import Progress, Work
from iopfl.images.files import find_notes
from iopfl.images.places import source_of

KINDS = ("global", "personalized", "local", "average", "published", "routed")
"""Models that can answer. `average` is the uniform average of the bank; `local` a site's own training."""

_CACHED_SERIES = 4
_TRIED = 4  # instances that are passed over to learn what one takes


@dataclass(frozen=True)
class LocalModel:
    """A site's own training, by its Train button.

    Attributes:
        weights: the weights of the task's network.
        metrics: validation Dice of `local`, `personalized` and `global`, all on the site's labels of that day.
    """

    weights: Weights
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """Which model a site answers with, and why."""

    kind: str
    weights: Weights
    reason: str
    metrics: Mapping[str, float] = field(default_factory=dict)


class Predictor:
    """Segments images with the models of a bank.

    Args:
        bank: opened.
        site: whose personalized model to use; None or a site outside the bank = none.
        task: the site's own settings of the bank's task; None = the bank's.
        local: the site's own training, if there is one.
        device: where to run.
        budget: seconds that the passes of a routed answer may take; None = as long as they take.
    """

    def __init__(
        self,
        bank: ModelBank,
        *,
        site: str | None = None,
        task: Task | None = None,
        local: LocalModel | None = None,
        device: torch.device | str = "cpu",
        budget: float | None = None,
    ) -> None:
        self.bank = bank
        self.site = site
        self.task = task or bank.task
        self.device = torch.device(device)
        self._local, self._budget, self._paces = local, budget, Paces()
        self._prepare = Preprocessing(self.task)
        self._networks: dict[str, nn.Module] = {}
        self._routed: RoutedNetwork | None = None
        self._published: RoutedNetwork | None = None
        self._series: OrderedDict[tuple[str, bool], AdaptedSeries] = OrderedDict()

    def segment(
        self,
        path: Path,
        kind: str | None = None,
        *,
        with_quality: bool = False,
        with_disagreement: bool = False,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Segmentation:
        """Segment an image file.

        Args:
            path: the image's file.
            kind: one of `KINDS`; None = what the site's validation labels favor.
            with_quality: agreement of the experts too, at a forward pass per expert; `routed` has it anyway.
            with_disagreement: where the experts disagree too, at up to a view of the whole image per expert.
            progress: told passes of the network done and in all, and what those take.
            cancelled: asked between them.

        Raises:
            SeriesError: the image cannot be read.
            ConfigError: the site has no such model, or the bank has one expert, which has nobody to disagree with.
            CancelledError: `cancelled` said so.
        """
        started = time.monotonic()
        work = Work(progress, cancelled)
        work.count(0)  # who waited for long may have gone
        if with_disagreement:
            self.check_disagreement()
        image = read_image(path, self.task)
        if with_disagreement:
            self.check_disagreement(image)
        volume, padding = self._prepare.prepare(image)
        windows = count_windows(volume, self.task)
        details: dict[str, Any] = {}
        slabs: Iterable[Tensor]
        if with_disagreement and kind != "routed":
            work.reserve(windows)
            voted = self._adapt(volume, padding, work, with_mask=False, with_map=True)
            work.reserve(voted.count_map_passes(windows))
            details = {"shortened": voted.shortened}
        if kind == "routed":
            series = self._adapt(volume, padding, work, with_map=with_disagreement)
            work.reserve(series.count_map_passes(windows) if with_disagreement else 0)
            details = {"quality": series.quality, "share": series.share, "shortened": series.shortened}
            details["zooms"] = tuple(part.zoom for part in series.parts)
            details["routing_weights"] = dict(zip(self.bank.names, series.routing_weights.tolist(), strict=True))
            slabs = series.predict_slabs(volume, self.task, device=self.device, work=work)
        elif kind == "published":
            slabs = [predict_published(self._publish([volume]), volume, self.task, device=self.device)]
        else:
            choice = self.choose() if kind is None else self._named(kind)
            kind, network = choice.kind, self._build(choice)
            details |= {"reason": choice.reason, "metrics": choice.metrics}
            work.expect(windows, self._find_pace("plain", network, volume))
            slabs = predict_slabs(network, volume, self.task, device=self.device, work=work)
        samples = None
        if with_quality and "quality" not in details:
            samples = Samples(sample_places(volume, self.task, self.task.adaptation.max_instances))
            slabs = samples.take(slabs)
        mask = self._prepare.mask(slabs, like=image)
        self._paces.learn("routed" if kind == "routed" else "plain", work)
        if samples is not None:
            details["quality"] = self.quality(volume, samples.instances(self.task), padding)
        disagreement = self.find_disagreement(image, (volume, padding), work) if with_disagreement else None
        details["left_out"] = find_notes(image).left_out
        affine = find_affine(image.affine.numpy(), mask.shape)
        details["measurements"] = measure(mask.numpy(), self.task.labels, affine)
        seconds = time.monotonic() - started
        answer = Answer(task=self.task.name, bank=self.bank.label, model=kind, seconds=seconds, **details)
        return Segmentation(mask, image, answer, disagreement)

    def check_disagreement(self, image: MetaTensor | None = None) -> None:
        """Raise where a single expert votes, or an image as read, (C, X, Y, Z), has no room for the masks of all.

        Raises:
            ConfigError: with what to do.
            SeriesError: the same.
        """
        if len(self.bank) < 2:
            raise ConfigError(
                f"bank {self.bank.label} has one model, {self.bank.names[0]}: a map of disagreement takes a bank of "
                "several; ask for the mask alone"
            )
        if self.task.adaptation.effective.max_voters < 2:
            raise ConfigError(f"task {self.task.name} lets one expert vote: set adaptation.max_voters to 2 or more")
        if image is not None:
            voters = min(len(self.bank), self.task.adaptation.effective.max_voters)
            affine = image.affine.numpy()
            check_room(source_of(image).name, image.shape[1:], self.task, affine, voters=voters)

    def adapt_site(self, paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> None:
        """Adapt `published` to all images of a site at once, as the paper does; otherwise it sees one series."""
        volumes = [self.prepare(path) for path in paths]
        self._published = self._publish(volumes, progress)

    def choose(self) -> Choice:
        """The model that the site's own validation labels favor: local, personalized or global.

        Equal Dice keeps the earlier of these. Where a model was never validated, what is closest to the site answers.
        """
        found = self.bank.find(self.site) if self.site else None
        scores: dict[str, float] = {}
        choices = [self._named("global")]
        if found is not None:
            choices.insert(0, Choice("personalized", found[1], ""))
            recorded = {"personalized": "dice", "global": "dice_global"}
            scores = {kind: found[0].metrics[key] for kind, key in recorded.items() if key in found[0].metrics}
        if self._local is not None:
            choices.insert(0, Choice("local", self._local.weights, ""))
            scores = dict(self._local.metrics)
        scores = {name: dice for name, dice in scores.items() if not math.isnan(dice)}  # of empty references
        if len(choices) == 1:
            inside = ", ".join(self.bank.names[1:]) or "none"
            return replace(choices[0], reason=f"no model of this site's own; sites in the bank: {inside}")
        if any(choice.kind not in scores for choice in choices):
            return replace(choices[0], reason="closest to this site; there was nothing to validate on", metrics=scores)
        best = max(choices, key=lambda choice: scores[choice.kind])
        return replace(best, reason="favored by this site's validation labels", metrics=scores)

    @torch.no_grad()
    def expert_answers(self, volume: Tensor, padding: Tensor | None = None) -> Tensor:
        """Each expert's class probabilities of a subsample of a prepared image: (E, N, K, *S).

        Args:
            volume: (C, X, Y, Z).
            padding: where it is no image, (X, Y, Z) bool, hence background; None = nowhere.
        """
        instances = sample_instances(volume, self.task, self.task.adaptation.max_instances).to(self.device)
        hidden = sample_padding(padding, self.task, self.task.adaptation.max_instances)
        routed = self._route()
        answers = []
        for expert in range(len(self.bank)):
            with routed.only(expert):
                answers.append(hide(predict_instances(routed, instances, self.task), hidden))
        return torch.stack(answers)

    def quality(self, volume: Tensor, answer: Tensor, padding: Tensor | None = None) -> float:
        """Agreement of the experts with an answer, 0 to 1.

        Args:
            volume: a prepared image (C, X, Y, Z).
            answer: class probabilities (N, K, *S) of what `sample_instances` takes of it.
            padding: as in `expert_answers`.
        """
        hidden = sample_padding(padding, self.task, self.task.adaptation.max_instances)
        return expert_agreement(self.expert_answers(volume, padding), hide(answer, hidden).to(self.device))

    def agreement(self, path: Path) -> float:
        """Agreement of the experts with their mean on an image file, 0 to 1."""
        experts = self.expert_answers(*self._prepare.prepare(read_image(path, self.task)))
        return expert_agreement(experts, experts.mean(0))

    def prepare(self, path: Path) -> Tensor:
        """An image file as a prepared volume (C, X, Y, Z)."""
        return self._prepare(read_image(path, self.task))

    def _adapt(
        self, volume: Tensor, padding: Tensor | None, work: Work, *, with_mask: bool = True, with_map: bool = False
    ) -> AdaptedSeries:
        """Adapt, or take what was adapted for the very same series before; without a mask, also what was for one."""
        name = hash_weights({"series": volume.permute(0, 3, 1, 2)})
        key = (name, with_mask or (name, True) in self._series)
        if key not in self._series:
            routed = self._route()
            adapter = RoutingAdapter(routed, self.task, device=self.device, budget=self._budget)
            with routed.only(0):
                pace = self._find_pace("routed", routed, volume)
            self._series[key] = adapter(
                volume, padding=padding, work=work, pace=pace, with_mask=with_mask, with_map=with_map
            )
        self._series.move_to_end(key)
        while len(self._series) > _CACHED_SERIES:
            self._series.popitem(last=False)
        return self._series[key]

    def find_disagreement(
        self, image: MetaTensor, prepared: tuple[Tensor, Tensor | None] | None = None, work: Work | None = None
    ) -> Tensor:
        """Where the experts disagree: percent that give another label than most, (X, Y, Z) uint8.

        Args:
            image: as read, (C, X, Y, Z).
            prepared: the same as `Preprocessing.prepare` gives it, if that is at hand.
            work: is told of each pass.

        Raises:
            ConfigError: a single expert votes.
            SeriesError: there is no room for the masks of all.
            CancelledError: `work` was cancelled.
        """
        self.check_disagreement(image)
        work = work or Work()
        volume, padding = self._prepare.prepare(image) if prepared is None else prepared
        work.reserve(0)
        series = self._adapt(volume, padding, work, with_mask=False, with_map=True)
        pace = self._find_pace("routed", self._route(), volume) if series.votes is None else None
        adapter = RoutingAdapter(self._route(), self.task, device=self.device, budget=self._budget)
        answers = adapter.predict_voters(volume, series, work, pace)
        return find_disagreement([self._prepare.mask(slabs, like=image) for slabs in answers])

    @torch.no_grad()
    def _find_pace(self, name: str, network: nn.Module, volume: Tensor) -> float | None:
        """Seconds that a pass over a prepared image takes here, where that is known or worth finding out."""
        network.to(self.device).eval()
        sample = lambda: sample_instances(volume, self.task, _TRIED).to(self.device)  # noqa: E731
        run = lambda instances: predict_instances(network, instances, self.task)  # noqa: E731
        return self._paces.find(name, count_windows(volume, self.task), sample, run)

    def _route(self) -> RoutedNetwork:
        if self._routed is None:
            self._routed = route_network(build_network(self.task), self.bank.experts).to(self.device)
        return self._routed

    def _publish(self, volumes: Sequence[Tensor], progress: Callable[[int, int], None] | None = None) -> RoutedNetwork:
        if self._published is not None:
            return self._published
        seed = self.task.adaptation.seed
        network = build_network(self.task)
        return adapt_published(
            network, self.bank.experts, volumes, self.task, seed=seed, device=self.device, progress=progress
        )

    def _named(self, kind: str) -> Choice:
        """The model of a kind."""
        if kind == "average":
            return Choice(kind, {}, "")
        if kind == "local" and self._local is not None:
            return Choice(kind, self._local.weights, "asked for")
        found = self.bank.find(None) if kind == "global" else None
        if kind == "personalized" and self.site is not None:
            found = self.bank.find(self.site)
        if found is None:
            raise ConfigError(
                f"no {kind} model for site {self.site!r}: the bank has {', '.join(self.bank.names)}; "
                f"models are {', '.join(KINDS)}"
            )
        return Choice(kind, found[1], "asked for")

    def _build(self, choice: Choice) -> nn.Module:
        if choice.kind not in self._networks:
            self._networks[choice.kind] = self.bank.build(choice.weights or None)
        return self._networks[choice.kind]
