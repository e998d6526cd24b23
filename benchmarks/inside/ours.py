"""Ours: the accumulated model, fine-tuned at its site, if the site's own validation labels favor it.

As `core.site_rounds.SiteRounds` shares it, and as `core.predictor.Predictor` chooses between it and the global model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from federation import Models, Setup, load_images
from inside import fedavg
from iopfl.base.locks import hold_one
from iopfl.core.training import fine_tune, validate
from iopfl.core.weights import Weights, read_weights, write_weights


@dataclass(frozen=True)
class Personalized:
    """Of each site: the model it shares, and the one it answers with."""

    shared: Mapping[str, Weights]
    answers: Mapping[str, Weights]


def personalize(setup: Setup, models: Models) -> Personalized:
    """Fine-tune the sites' accumulated models, or open them where that is done, and choose by validation."""
    shared, answers = {}, {}
    for position, site in enumerate(setup.sites):
        accumulated = models[f"personalized/{site}"]
        tuned = _fine_tune(setup, site, accumulated, seed=setup.seed * 100 + position)
        dice = {
            name: _validate(setup, site, weights)
            for name, weights in (("tuned", tuned), ("accumulated", accumulated), ("global", models["global"]))
        }
        shared[site] = tuned if dice["tuned"] >= dice["accumulated"] else accumulated
        better = max(dice["tuned"], dice["accumulated"]) >= dice["global"]
        answers[site] = shared[site] if better else models["global"]
    return Personalized(shared, answers)


def _fine_tune(setup: Setup, site: str, weights: Weights, *, seed: int) -> Weights:
    epochs = setup.task.training.fine_tune_epochs
    path = setup.folder(fedavg) / f"tuned-{epochs}-{site}.safetensors"
    with hold_one([path.with_suffix(".lock")]):
        if not path.is_file():
            images = load_images(setup, "train", site)
            write_weights(path, fine_tune(weights, images, seed=seed, device=setup.device), {})
        return read_weights(path)[0]


def _validate(setup: Setup, site: str, weights: Weights) -> float:
    return validate(setup.build(weights), load_images(setup, "validation", site), device=setup.device)
