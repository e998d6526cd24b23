"""The predictor: which model answers and why, on which grid, and what is remembered of a series."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from iopfl.base.errors import CancelledError, ConfigError, SeriesError
from iopfl.core import predictor as module
from iopfl.core.predictor import KINDS, LocalModel, Predictor
from iopfl.core.sites import find_cases

from .tiny import BALL, DISK, STACK, TASKS, make_bank, make_experts


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    return {task.name: make_bank(tmp_path_factory.mktemp(task.name) / "bank", task) for task in TASKS}


def local(**metrics):
    return LocalModel(make_experts(DISK, 9)[-1], metrics)


@pytest.mark.parametrize(
    ("metrics", "own", "kind", "reason"),
    [
        ({"dice": 0.8, "dice_global": 0.7}, None, "personalized", "favored by this site's validation labels"),
        ({"dice": 0.6, "dice_global": 0.7}, None, "global", "favored by this site's validation labels"),
        ({"dice": 0.7, "dice_global": 0.7}, None, "personalized", "favored"),
        ({}, None, "personalized", "closest to this site; there was nothing to validate on"),
        ({"dice": 0.8}, None, "personalized", "nothing to validate on"),
        ({"dice": 0.1, "dice_global": 0.2}, {}, "local", "closest to this site; there was nothing"),
        ({}, {"local": 0.9, "personalized": 0.8, "global": 0.7}, "local", "favored"),
        ({}, {"local": 0.6, "personalized": 0.8, "global": 0.7}, "personalized", "favored"),
        ({}, {"local": 0.6, "personalized": 0.5, "global": 0.7}, "global", "favored"),
    ],
)
def test_the_sites_validation_labels_choose(metrics, own, kind, reason, tmp_path):
    bank = make_bank(tmp_path / "bank", DISK, **metrics)
    choice = Predictor(bank, site="north", local=None if own is None else local(**own)).choose()
    assert choice.kind == kind
    assert reason in choice.reason
    if own:
        assert choice.metrics == own


def test_a_score_that_is_undefined_does_not_choose(banks):
    own = local(local=float("nan"), personalized=0.9, **{"global": 0.1})
    choice = Predictor(banks["disk"], site="north", local=own).choose()
    assert "nothing to validate on" in choice.reason


@pytest.mark.parametrize("site", [None, "east"])
def test_an_outside_site_gets_the_global_model_and_is_told_why(site, banks):
    choice = Predictor(banks["disk"], site=site).choose()
    assert choice.kind == "global"
    assert choice.reason == "no model of this site's own; sites in the bank: north, south"


def site_of(task, request):
    return request.getfixturevalue("ball_site" if task.spatial_dims == 3 else "disk_site")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_kind_answers_on_the_images_grid(task, banks, request, monkeypatch):
    monkeypatch.setattr("iopfl.core.published.EPOCHS", 1)
    case = find_cases(site_of(task, request))[0]
    weights = make_experts(task, 5)[-1]
    predictor = Predictor(banks[task.name], site="north", local=LocalModel(weights, {}))
    masks = {}
    for kind in KINDS:
        result = predictor.segment(case.image, kind)
        assert result.answer.model == kind
        assert result.mask.shape == result.image.shape[1:]
        assert result.mask.dtype == torch.uint8
        assert set(result.mask.unique().tolist()) <= set(task.label_values)
        params = json.loads(json.dumps(result.answer.to_params(), allow_nan=False))
        assert (params["task"], params["model"], params["bank"]) == (task.name, kind, banks[task.name].label)
        masks[kind] = result.mask
    assert not torch.equal(masks["global"], masks["personalized"])
    assert not torch.equal(masks["local"], masks["personalized"])


def test_routed_says_whose_knowledge_is_in_the_answer(banks, disk_site):
    case = find_cases(disk_site)[0]
    result = Predictor(banks["disk"]).segment(case.image, "routed")
    params = result.answer.to_params()
    assert list(params["routing_weights"]) == ["global", "north", "south"]
    assert sum(params["routing_weights"].values()) == pytest.approx(1, abs=1e-3)
    assert 0 <= params["quality"] <= 1
    assert params["share"] in DISK.adaptation.shares
    assert params["zooms"][0] == 1.0


@pytest.mark.parametrize("task", [STACK, BALL], ids=["2.5D", "3D"])
def test_quality_is_given_when_asked_for(task, banks, request):
    case = find_cases(site_of(task, request))[0]
    predictor = Predictor(banks[task.name], site="north")
    plain = predictor.segment(case.image).answer
    assert plain.quality is None
    assert "quality" not in plain.to_params()
    assert 0 <= predictor.segment(case.image, with_quality=True).answer.quality <= 1


def test_identical_experts_agree_with_their_own_answer_best(tmp_path, disk_site):
    models = make_experts(DISK, 1) * 3
    bank = make_bank(tmp_path / "bank", DISK)
    bank.experts = models
    predictor = Predictor(bank)
    volume = predictor.prepare(find_cases(disk_site)[0].image)
    answer = predictor.expert_answers(volume)[0]
    own = predictor.quality(volume, answer)
    assert own == pytest.approx(1, abs=1e-5)
    assert predictor.quality(volume, answer.flip(1)) < own


def test_a_series_is_adapted_to_once(banks, disk_site, monkeypatch):
    predictor = Predictor(banks["disk"])
    adapted = []
    adapt = module.RoutingAdapter.__call__
    monkeypatch.setattr(
        module.RoutingAdapter, "__call__", lambda self, *args, **kw: (adapted.append(1), adapt(self, *args, **kw))[1]
    )
    cases = find_cases(disk_site)
    first = predictor.segment(cases[0].image, "routed")
    again = predictor.segment(cases[0].image, "routed")
    assert len(adapted) == 1
    assert torch.equal(first.mask, again.mask)
    assert first.answer == replace(again.answer, seconds=first.answer.seconds)
    for case in cases[1:6]:
        predictor.segment(case.image, "routed")
    assert len(adapted) == 6
    predictor.segment(cases[0].image, "routed")  # forgotten since
    assert len(adapted) == 7


def test_one_patient_leaves_nothing_for_the_next(banks, disk_site):
    cases = find_cases(disk_site)
    used = Predictor(banks["disk"])
    used.segment(cases[1].image, "routed")
    result, fresh = (p.segment(cases[0].image, "routed") for p in (used, Predictor(banks["disk"])))
    assert torch.equal(result.mask, fresh.mask)
    assert result.answer.quality == fresh.answer.quality


def test_a_cancelled_series_is_not_remembered(banks, disk_site):
    predictor = Predictor(banks["disk"])
    image = find_cases(disk_site)[0].image
    with pytest.raises(CancelledError):
        predictor.segment(image, "routed", cancelled=lambda: True)
    expected = Predictor(banks["disk"]).segment(image, "routed")
    assert torch.equal(predictor.segment(image, "routed").mask, expected.mask)


@pytest.mark.parametrize(
    ("kind", "site"), [("personalized", None), ("personalized", "east"), ("local", "north"), ("x", None)]
)
def test_a_model_that_is_not_there_is_named_with_those_that_are(kind, site, banks, disk_site):
    with pytest.raises(ConfigError, match=f"no {kind} model for site {site!r}: the bank has global, north, south"):
        Predictor(banks["disk"], site=site).segment(find_cases(disk_site)[0].image, kind)


def test_a_picture_given_to_a_25d_task_is_segmented(banks, disk_site):
    assert Predictor(banks["stack"]).segment(find_cases(disk_site)[0].image).mask.shape == (32, 32, 1)


def test_an_image_that_cannot_be_read_is_named(banks, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(SeriesError, match=r"broken.png: cannot be read"):
        Predictor(banks["disk"]).segment(tmp_path / "broken.png")


@pytest.mark.parametrize("kind", ["global", "routed"])
def test_a_large_oblique_volume_comes_back_on_its_grid(kind, banks, tmp_path):
    affine = np.array([[0.8, 0.3, 0, 5], [-0.3, 0.8, 0.1, 7], [0, 0.2, -1.4, 9], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).normal(size=(37, 22, 17)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "o.nii.gz")
    result = Predictor(banks["ball"]).segment(tmp_path / "o.nii.gz", kind)
    assert result.mask.shape == (37, 22, 17)
    np.testing.assert_allclose(result.image.affine.numpy(), affine, atol=1e-5)
