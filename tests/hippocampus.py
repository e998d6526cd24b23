"""A bank that has learned: a small network trained for half a minute on real hippocampi, where they are at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from iopfl.core.bank.bank import Model, ModelBank, Role, save_bank
from iopfl.core.bank.signing import Keyring
from iopfl.core.networks import build_network
from iopfl.core.sites import Case, find_cases, labeled
from iopfl.core.task import Network, Training, read_task
from iopfl.core.training import LabeledImages, train, validate

TASK = replace(
    read_task("hippocampus"),
    spacing=(2.0, 2.0, 2.0),
    size=(16, 32, 16),
    network=Network("BasicUNet", {"features": [8, 8, 16, 32, 64, 8], "norm": "batch", "upsample": "deconv"}),
    training=Training(batch_size=8, learning_rate=3e-3, min_labels=3, validation_share=0.3),
)
SITES = ("east", "west")
_STEPS, _MORE_STEPS = 80, 8


def real_cases(data: Path) -> list[Case]:
    """The labeled crops."""
    return labeled(find_cases(data / "hippocampus"))


def train_bank(folder: Path, data: Path) -> ModelBank:
    """A global model of 32 crops, and two sites' own of 16 each, with their Dice on eight further ones.

    Args:
        folder: the bank's folder; its signer's keys are beside it.
        data: `shared/data`.
    """
    cases = real_cases(data)
    east, west, held_out = cases[:16], cases[16:32], LabeledImages(cases[32:40], TASK, minimum=1)
    network = build_network(TASK, seed=0)
    trained = train(network, LabeledImages([*east, *west], TASK), seed=0, steps=_STEPS, decay=True)
    dice = validate(network, held_out)
    models = [Model("", Role.GLOBAL, 0, 32, {"dice": dice}, trained.weights)]
    for site, own in zip(SITES, (east, west), strict=True):
        network.load_state_dict(trained.weights)
        weights = train(network, LabeledImages(own, TASK), seed=1, steps=_MORE_STEPS, decay=True).weights
        metrics = {"dice": validate(network, held_out), "dice_global": dice}
        models.append(Model(site, Role.PERSONALIZED, 0, 16, metrics, weights))
    return save_bank(folder, models, task=TASK, federation="tests", keys=Keyring(folder.parent / "keys"))
