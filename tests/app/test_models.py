"""The app's parts in this process: what is served, and a training's corner cases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from core.tiny import UNET
from iopfl.base.errors import BankMismatchError, ConfigError
from iopfl.core.bank.bank import ModelBank
from iopfl.core.predictor import LocalModel

from .site import GLAND, SPOT, conf_of, make_site_bank, write_scans


@pytest.fixture(scope="module", autouse=True)
def _importable() -> None:
    from iopfl.compat import apply_early

    apply_early()


@pytest.fixture
def bank(tmp_path) -> ModelBank:
    return make_site_bank(tmp_path / "bank", GLAND)


def serve(opened: ModelBank, state: Path, **conf: str):
    """What a server of `site_a` would answer with."""
    from iopfl.lib.models import SiteModels
    from iopfl.lib.settings import AppSettings

    values = {key: str(value) for key, value in conf_of(opened).items()}
    return SiteModels(AppSettings.from_conf({**values, **conf}, default_state=state))


def train(bank: ModelBank, studies: Path, state: Path, **request):
    """Train in this process; returns the train task."""
    from iopfl.labels.checked import CheckedDatastore
    from iopfl.lib.trainers import LocalTraining

    models = serve(bank, state)
    trainer = LocalTraining(models, models.tasks["gland"])
    store = CheckedDatastore(str(studies), extensions=["*.nii.gz"], tasks=models.tasks)
    trainer({"epochs": 1, **request}, store)
    return trainer


def publish(models, bank: ModelBank, **metrics: float) -> None:
    models.publish_local("gland", LocalModel(bank.experts[0], metrics))


def test_a_local_model_serves_only_where_validation_favors_it(bank, tmp_path):
    models = serve(bank, tmp_path / "state")
    assert models.predictor("gland").choose().kind == "personalized"
    publish(models, bank, personalized=0.6, **{"global": 0.5, "local": 0.7})
    assert models.predictor("gland").choose().kind == "local"
    publish(models, bank, personalized=0.8, **{"global": 0.5, "local": 0.7})
    assert models.predictor("gland").choose().kind == "personalized"
    assert models.describe("gland")["choice"]["metrics"]["local"] == pytest.approx(0.7)


@pytest.mark.parametrize("damage", ["truncated", "of another network"])
def test_a_local_model_that_cannot_serve_is_left_out(bank, tmp_path, damage):
    state = tmp_path / "state"
    publish(serve(bank, state), bank, local=0.9, personalized=0.6, **{"global": 0.5})
    file = state / "local" / "gland.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:200])
    else:
        larger = replace(GLAND, network=replace(UNET, args={**UNET.args, "channels": [4, 8, 16]}))
        bank = make_site_bank(tmp_path / "larger", larger, keys=tmp_path / "keys")
    assert serve(bank, state).predictor("gland").choose().kind == "personalized"


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"colour": "red"}, "unknown --conf colour; there are answer_seconds"),
        ({"tasks": "liver"}, "no task 'liver': expected one of"),
        ({"tasks": "vessel"}, "tasks without a bank: vessel"),
        ({"bank": ""}, "no bank: give"),
        ({"device": "abacus"}, "no device 'abacus'"),
    ],
)
def test_a_setting_that_cannot_be_is_named(bank, tmp_path, conf, message):
    with pytest.raises((ConfigError, BankMismatchError), match=message):
        serve(bank, tmp_path / "state", **conf)


def test_cuda_is_refused_where_there_is_none(bank, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="none that PyTorch can use"):
        serve(bank, tmp_path / "state", device="cuda")


def test_two_banks_serve_two_tasks(bank, tmp_path):
    other = make_site_bank(tmp_path / "pictures", SPOT, keys=tmp_path / "keys")
    models = serve(bank, tmp_path / "state", bank=f"{bank.folder},{other.folder}")
    assert {name: models.describe(name)["bank"] for name in models.tasks} == {"gland": bank.label, "spot": other.label}


def test_undefined_dice_does_not_break_a_training(bank, tmp_path):
    """In a label in which nothing is drawn there is no Dice, and JSON has no NaN."""
    studies = write_scans(tmp_path / "site_a", labeled=6, unlabeled=0)
    for label in (studies / "labels" / "final").iterdir():
        scan = nib.load(label)
        nib.save(nib.Nifti1Image(np.zeros(scan.shape, np.uint8), scan.affine), label)
    stats = train(bank, studies, tmp_path / "state").stats()
    assert json.loads(json.dumps(stats, allow_nan=False)) == stats
    assert stats["best_metric"] == 0
    choice = serve(bank, tmp_path / "state").predictor("gland").choose()
    assert (choice.kind, "nothing to validate on" in choice.reason) == ("local", True)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"epochs": "many"}, "epochs: expected a whole number, given 'many'"),
        ({"device": "abacus"}, "no device 'abacus'"),
        ({}, "are one patient's"),
    ],
)
def test_a_training_that_cannot_be_is_explained(tmp_path, request_, message):
    from monailabel.interfaces.exception import MONAILabelException

    bank = make_site_bank(tmp_path / "bank", GLAND if request_ else replace(GLAND, subject="(case)"))
    studies = write_scans(tmp_path / "site_a", labeled=5, unlabeled=0)
    with pytest.raises(MONAILabelException) as caught:
        train(bank, studies, tmp_path / "state", **request_)
    assert message in caught.value.msg
    assert not (tmp_path / "state").exists()
