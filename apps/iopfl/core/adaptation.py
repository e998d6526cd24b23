"""Outside personalization: adapt a routed network to one series, without labels (IOP-FL, section III-C).

The form is tent's: configure, collect, loss, step, reset, and one callable.
Where the paper leads and where this leaves it:

1. start at the uniform average of the experts, normalization included;
2. use that share of the series' own statistics under which the experts agree most;
3. step on the consistency loss over views, with the shape constraint, anchored to the start;
4. a guard keeps the step only if the experts agree more with it than with the start;
5. freeze the statistics and fold: what is left is a plain network.

Episodic: every series starts anew. `published` holds the published recipe.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iopfl.core.agreement import expert_agreement, soft_agreement
from iopfl.core.errors import CancelledError
from iopfl.core.inference import predict_instances
from iopfl.core.losses import consistency_loss, shape_constraint
from iopfl.core.routing import RoutedNetwork
from iopfl.core.task import Task
from iopfl.core.transforms import to_instances, to_windows
from iopfl.core.views import View, views_of

Progress = Callable[[float], None]
"""Called with the share of the work that is done, 0 to 1."""

_BOUNDARY_PIXELS = 5
"""Window of the shape constraint's pooling."""
_GUARD_MASS = 0.5
"""An adapted answer with less than this share of the start's foreground, or more than its inverse, is a collapse."""


@dataclass(frozen=True)
class AdaptedSeries:
    """What adaptation gives for one series.

    Attributes:
        network: plain, folded; the series' statistics are in it.
        views: what the final prediction averages over.
        share: of the series' own statistics that was chosen.
        is_adapted: whether the guard kept the adapted routing, or went back to the start.
        quality: agreement of the experts with the answer, 0 to 1, on the instances looked at.
        routing_weights: layer name -> (E,).
        seconds: that it took.
    """

    network: nn.Module
    views: tuple[View, ...]
    share: float
    is_adapted: bool
    quality: float
    routing_weights: dict[str, Tensor]
    seconds: float

    def mean_routing_weights(self) -> Tensor:
        """Mean over the layers, (E,): how much of each expert is in the answer."""
        return torch.stack(list(self.routing_weights.values())).mean(0)


class RoutingAdapter:
    """Adapts a routed network, one series at a time.

    Args:
        network: routed per series, with normalization.
        task: its adaptation settings are read.
        device: where to run.
    """

    def __init__(self, network: RoutedNetwork, task: Task, *, device: torch.device | str = "cpu") -> None:
        self.network = network.to(device).eval()
        self.task = task
        self.device = torch.device(device)
        self.settings = task.adaptation

    @torch.inference_mode(False)  # nor inside inference_mode, which forbids gradients for good
    def __call__(
        self, volume: Tensor, *, progress: Progress | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> AdaptedSeries:
        """Adapt to a series. Nothing of it stays in the adapter.

        Args:
            volume: a prepared image, (C, X, Y, Z).
            progress: told how far it is.
            cancelled: asked between passes.

        Raises:
            CancelledError: `cancelled` said so.
        """
        clock = _Clock(self.settings.seconds, progress or (lambda _: None), cancelled)
        instances = sample_instances(volume, self.task, self.settings.max_instances).to(self.device)
        try:
            self.reset()
            share, experts = self._choose_share(instances, clock)
            self.network.set_share(share)
            views = views_of(self.task)[: max(1, self.settings.target_views)]
            target, start = self._predict_views(instances, views)
            clock.check(0.7)
            answer, is_adapted = start, False
            if self.settings.steps and len(views) > 1 and not clock.is_over:
                self._step(instances, views, target, clock)
                adapted, _ = self._predict_views(instances, views[:1])
                is_adapted = _is_better(experts, adapted, start)
                answer = adapted if is_adapted else start
            if not is_adapted:
                self.reset()
                self.network.set_share(share)
            clock.check(0.9)
            self.network.freeze_statistics([_channels_last(instances, self.task)])
            return AdaptedSeries(
                network=self.network.fold(),
                views=tuple(final_views(self.task, to_instances(volume, self.task).shape[0])),
                share=share,
                is_adapted=is_adapted,
                quality=expert_agreement(experts, answer),
                routing_weights={name: weights.cpu() for name, weights in self.network.routing_weights().items()},
                seconds=clock.seconds,
            )
        finally:
            self.reset()

    def parameters(self) -> dict[str, nn.Parameter]:
        """What adaptation moves: routing logits and normalization offsets, by name. Nothing else."""
        moved = ("router.logits", "offsets")
        return {name: value for name, value in self.network.named_parameters() if name.endswith(moved)}

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the uniform average and the stored statistics, bit for bit."""
        for parameter in self.parameters().values():
            parameter.zero_()
            parameter.grad = None
        self.network.set_share(0.0)

    @torch.no_grad()
    def _choose_share(self, instances: Tensor, clock: _Clock) -> tuple[float, Tensor]:
        """The share of the series' statistics under which the experts agree most, with their answers (E, N, K, *S)."""
        best: tuple[float, float, Tensor] | None = None
        for index, share in enumerate(self.settings.shares):
            if best is not None and clock.is_over:
                break
            clock.check(0.6 * index / len(self.settings.shares))
            self.network.set_share(share)
            answers = []
            for expert in range(self.network.num_experts):
                with self.network.only(expert):
                    answers.append(predict_instances(self.network, instances, self.task))
            experts = torch.stack(answers)  # (E, N, K, *S)
            agreement = expert_agreement(experts, experts.mean(0))
            if best is None or agreement > best[0]:
                best = (agreement, share, experts)
        assert best is not None  # a task has at least one share
        return best[1], best[2]

    @torch.no_grad()
    def _predict_views(self, instances: Tensor, views: list[View]) -> tuple[Tensor, Tensor]:
        """Mean over views and the first of them, (N, K, *S) each."""
        first = predict_instances(self.network, instances, self.task, views=views[:1])
        if len(views) == 1:
            return first, first
        others = predict_instances(self.network, instances, self.task, views=views[1:])
        return (first + (len(views) - 1) * others) / len(views), first

    @torch.enable_grad()  # the caller may be inside no_grad
    def _step(self, instances: Tensor, views: list[View], target: Tensor, clock: _Clock) -> None:
        """Optimizer steps of each view toward the mean of all, anchored to the start."""
        parameters = list(self.parameters().values())
        optimizer = torch.optim.Adam(parameters, lr=self.settings.learning_rate)
        generator = torch.Generator().manual_seed(self.settings.seed)
        for _ in range(self.settings.steps):
            clock.check(0.8)
            if clock.is_over:
                return
            view = views[int(torch.randint(len(views), (), generator=generator))]
            answer = predict_instances(self.network, instances, self.task, views=[view])
            loss = consistency_loss(answer, target)
            loss = loss + self.settings.shape_weight * shape_constraint(1 - answer[:, 0], kernel_size=_BOUNDARY_PIXELS)
            loss = loss + self.settings.anchor_weight * sum(p.square().mean() for p in parameters) / len(parameters)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def final_views(task: Task, num_instances: int) -> list[View]:
    """Views of the final prediction: as many as the budget of passes allows, the image itself first."""
    allowed = max(1, min(task.adaptation.max_views, task.adaptation.max_passes // num_instances))
    return views_of(task)[:allowed]


def sample_instances(volume: Tensor, task: Task, count: int) -> Tensor:
    """At most `count` instances, evenly over the series: slices of a 2D task, windows of a 3D one."""
    instances = to_instances(volume, task)
    if task.spatial_dims == 3:
        instances = to_windows(instances, task)
    positions = ((torch.arange(min(count, len(instances))) + 0.5) * len(instances) / min(count, len(instances))).long()
    return instances[positions]


def _is_better(experts: Tensor, adapted: Tensor, start: Tensor) -> bool:
    """The guard: more agreement of the experts, and no collapse of the foreground."""
    mass, before = adapted[:, 1:].sum().item(), start[:, 1:].sum().item()
    collapsed = not _GUARD_MASS * before <= mass <= before / _GUARD_MASS
    after, at_start = (expert_agreement(experts, answer, pairwise=soft_agreement) for answer in (adapted, start))
    return not collapsed and after > at_start


def _channels_last(instances: Tensor, task: Task) -> Tensor:
    return instances.contiguous(memory_format=torch.channels_last) if task.spatial_dims == 2 else instances


class _Clock:
    """Time budget, progress and cancel of one adaptation."""

    def __init__(self, budget: float, progress: Progress, cancelled: Callable[[], bool]) -> None:
        self._started, self._budget = time.monotonic(), budget
        self._progress, self._cancelled = progress, cancelled

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def is_over(self) -> bool:
        return self.seconds > self._budget

    def check(self, done: float) -> None:
        if self._cancelled():
            raise CancelledError("adaptation stopped; nothing of this series was kept")
        self._progress(done)
