"""A federation in one process, for benchmarks: the bridge's rounds without FLARE, cached by configuration."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from iopfl.core.bank import Model, ModelBank, Role, save_bank
from iopfl.core.errors import BankError
from iopfl.core.networks import build_network
from iopfl.core.personalization import PersonalizedModel
from iopfl.core.signing import Keyring
from iopfl.core.sites import find_cases, labeled, split_cases
from iopfl.core.task import Task
from iopfl.core.training import LabeledImages, train, validate
from iopfl.core.weights import average, snapshot


def train_bank(
    data: Path, sites: Sequence[str], task: Task, *, rounds: int, seed: int, cache: Path, device: str
) -> ModelBank:
    """Train a bank on inside sites, or open the one that the same configuration made before.

    Args:
        data: folder of site folders.
        sites: inside sites.
        task: theirs.
        rounds: of the federation.
        seed: of initial weights and of each site's order and augmentation.
        cache: folder for banks.
        device: where to train.
    """
    training = {key: value for key, value in task.to_dict().items() if key != "adaptation"}
    configuration = json.dumps([str(data.resolve().name), sorted(sites), training, rounds, seed, 1], sort_keys=True)
    folder = cache / hashlib.sha256(configuration.encode()).hexdigest()[:16]
    keys = Keyring(cache / "keys")
    try:
        return ModelBank.open(folder, task=task, keys=keys)
    except BankError:
        pass
    images, held_out = {}, {}
    for site in sites:
        split = split_cases(find_cases(data / site), task, site_folder=data / site)
        images[site] = LabeledImages(labeled(split["train"]), task, minimum=1)
        held_out[site] = LabeledImages(labeled(split["validation"]), task, minimum=1)
    network = build_network(task, seed=seed)
    global_model = snapshot(network)
    personalized: dict[str, PersonalizedModel] = {}
    for round_index in tqdm(range(rounds), desc=f"rounds, seed {seed}", disable=None):
        updates = []
        for position, site in enumerate(sites):
            network.load_state_dict(global_model)
            site_seed = (seed * 1_000 + round_index) * 100 + position
            local_model = train(network, images[site], seed=site_seed, device=device).weights
            updates.append(local_model)
            known = personalized.get(site)
            personalized[site] = (
                known.accumulate(local_model, round_index=round_index, alpha=task.training.alpha)
                if known
                else PersonalizedModel.start(local_model, round_index=round_index)
            )
        global_model = average(updates, [len(images[site]) for site in sites])
    network.load_state_dict(global_model)
    dice_global = {site: validate(network, held_out[site], device=device) for site in sites}
    samples = {site: len(images[site]) for site in sites}
    models = [Model("", Role.GLOBAL, rounds - 1, sum(samples.values()), {}, global_model)]
    for site in sites:
        network.load_state_dict(personalized[site].weights)
        metrics = {"dice": validate(network, held_out[site], device=device), "dice_global": dice_global[site]}
        models.append(Model(site, Role.PERSONALIZED, rounds - 1, samples[site], metrics, personalized[site].weights))
    return save_bank(folder, models, task=task, federation="benchmark", keys=keys)
