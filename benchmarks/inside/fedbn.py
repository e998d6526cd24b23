"""FedBN (Li et al., ICLR 2021): normalization layers, statistics included, stay at the site."""

from __future__ import annotations

from torch.nn.modules.batchnorm import _NormBase

from federation import Federation, Models
from iopfl.core.networks import build_network
from iopfl.core.task import Task
from iopfl.core.weights import Weights, average

SETTINGS: dict[str, float] = {}


def train_round(federation: Federation, models: Models, round_index: int) -> None:
    """Average all but the normalization layers; what a site uses is `personalized/SITE`."""
    own = find_normalization(federation.setup.task)
    updates = {
        site: federation.train(site, models.get(f"personalized/{site}", models["global"]), round_index)
        for site in federation.sites
    }
    models["global"] = average(list(updates.values()), federation.shares)
    for site, update in updates.items():
        models[f"personalized/{site}"] = with_own(models["global"], update, own)


def find_normalization(task: Task) -> set[str]:
    """Keys of the weights that belong to normalization layers."""
    modules = build_network(task).named_modules()
    found = [(name, module) for name, module in modules if isinstance(module, _NormBase)]
    return {f"{name}.{key}" for name, module in found for key in module.state_dict()}


def with_own(shared: Weights, own: Weights, keys: set[str]) -> Weights:
    """Shared weights, with some entries of a site's own."""
    return {key: (own[key] if key in keys else value).clone() for key, value in shared.items()}
