"""What every method outside is given: a bank and prepared images. There is no label in it, and no way to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iopfl.core.inference import predict_instances
from iopfl.core.networks import build_network
from iopfl.core.routing import RoutedNetwork, route_network
from iopfl.core.task import Task
from iopfl.core.transforms import from_instances, to_instances
from iopfl.core.views import View
from iopfl.core.weights import Weights


@dataclass(frozen=True)
class Scene:
    """An outside site as a method sees it.

    Attributes:
        task: what to segment.
        experts: weights in bank order: the global model, then each inside site's personalized one.
        volumes: prepared images (C, X, Y, Z), in the order in which they come.
        batch_size: pictures taken together by methods that work on batches; volumes come one by one.
        seed: the seed of everything random in a method.
        device: where to run.
    """

    task: Task
    experts: Sequence[Weights]
    volumes: Sequence[Tensor]
    batch_size: int = 1
    seed: int = 0
    device: str = "cpu"

    def build(self, weights: Weights) -> nn.Module:
        """The task's network with these weights."""
        network = build_network(self.task)
        network.load_state_dict(weights)
        return network.to(self.device).eval()

    def route(self) -> RoutedNetwork:
        """The bank's mixture, at the uniform average."""
        return route_network(build_network(self.task), self.experts).to(self.device)

    def batches(self) -> Iterator[Tensor]:
        """The instances (N, in_channels, *S), `batch_size` volumes at a time where they are of one size."""
        for start in range(0, len(self.volumes), self.batch_size):
            group = [to_instances(volume, self.task) for volume in self.volumes[start : start + self.batch_size]]
            if len({instances.shape[1:] for instances in group}) == 1:
                yield torch.cat(group).to(self.device)
            else:
                yield from (instances.to(self.device) for instances in group)

    def split(self, outputs: Sequence[Tensor]) -> Answers:
        """Outputs of `batches`, (N, K, *S) each, as class probabilities of each volume."""
        flat = torch.cat([output.cpu() for output in outputs]) if self.task.spatial_dims == 2 else None
        if flat is None:
            return Answers([from_instances(part[None], self.task) for output in outputs for part in output.cpu()])
        depths = [volume.shape[-1] for volume in self.volumes]
        return Answers([from_instances(part, self.task) for part in flat.split(depths)])


@dataclass(frozen=True)
class Answers:
    """What a method gives: class probabilities (K, X, Y, Z) of each volume, and a quality score where it has one."""

    probabilities: list[Tensor]
    quality: list[float] | None = None


Method = Callable[[Scene], Answers]


@torch.inference_mode()
def predict_batches(network: nn.Module, scene: Scene, views: Sequence[View] = (View(),)) -> Answers:
    """A network over a scene, batch by batch."""
    return scene.split([predict_instances(network, batch, scene.task, views=views) for batch in scene.batches()])
