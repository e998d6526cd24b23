"""A routed answer takes no more passes than its time budget allows, and says before it starts what it takes."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from iopfl.core.planning import Paces, count_views, make_plan
from iopfl.core.predictor import Predictor
from iopfl.core.task import Adaptation
from iopfl.core.work import Work

from .tiny import BALL, DISK, STACK, make_bank


def plan(windows, *, pace=1.0, budget=None, task=DISK, experts=4, **what):
    return make_plan(task, windows, experts=experts, instances=3, pace=pace, budget=budget, **what)


@pytest.mark.parametrize("task", [DISK, replace(DISK, adaptation=Adaptation(fast=True)), BALL])
@pytest.mark.parametrize("windows", [1, 5, 30, 600])
def test_a_plan_fits_its_budget_or_is_the_least_and_says_so(windows, task):
    usual = plan(windows, task=task)
    assert usual.shortened == "" and usual.views == count_views(task.adaptation.effective, windows)
    before = 0
    for budget in range(1, usual.passes + 2):
        found = plan(windows, budget=budget, task=task)
        assert 1 <= found.views <= usual.views
        assert before <= found.passes <= usual.passes, "a larger budget takes no fewer passes"
        fits = found.passes <= budget
        assert ("not enough" in found.shortened) == (not fits)
        assert bool(found.shortened) == (budget < usual.passes)
        if not fits:
            assert found.views == 1 and found.settings.max_voters <= 2
            before = 0
        assert f"{budget} s" in found.shortened or not found.shortened
    assert plan(windows, budget=usual.passes, task=task) == usual


def test_what_is_left_out_is_said():
    assert plan(6, budget=70.0).shortened == "3 of 8 views, to take at most 70 s"
    least = "3 of 8 views, 2 of 4 experts asked, no magnification, to take at most 40 s"
    assert plan(6, budget=40.0).shortened == least


def test_masks_of_the_experts_are_within_the_budget_too():
    assert plan(6, with_map=True).passes == plan(6).passes + 4 * 6
    assert plan(6, with_map=True, with_mask=False).passes == plan(6).passes + 4 * 6 - 8 * 6
    assert plan(6, budget=94.0, with_map=True).shortened == "3 of 8 views, to take at most 94 s"
    alone = plan(6, budget=70.0, with_map=True, with_mask=False)
    assert alone.shortened == "2 of 4 experts asked, to take at most 70 s" and alone.passes <= 70


def test_without_a_pace_nothing_is_left_out():
    assert plan(600, pace=None, budget=1e-9) == plan(600)


def test_what_a_pass_takes_is_tried_where_there_are_many_and_known_afterwards():
    paces, tried = Paces(), []
    assert paces.find("routed", 5, lambda: [0, 0, 0, 0], tried.append) is None and not tried
    assert paces.find("routed", 500, lambda: [0, 0, 0, 0], tried.append) >= 0
    assert [len(instances) for instances in tried] == [1, 3]
    now = [0.0]
    work = Work(clock=lambda: now[-1])
    work.expect(40)
    now.append(2.0)
    work.count(20)
    paces.learn("routed", work)
    assert paces.find("routed", 5, list, tried.append) == pytest.approx(0.1)
    assert len(tried) == 2


@pytest.mark.parametrize("kind", ["global", "routed"])
@pytest.mark.parametrize("task", [STACK, BALL], ids=["2.5D", "3D"])
def test_a_large_image_says_what_it_takes_before_it_starts_and_keeps_to_it(kind, task, tmp_path):
    image = tmp_path / "long.nii"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(48, 48, 120)), np.eye(4)), image)
    bank = make_bank(tmp_path / "bank", task)
    seen = []
    predictor = Predictor(bank, budget=1e-6)
    answer = predictor.segment(image, kind, progress=lambda *told: seen.append(told)).answer
    assert seen[0][0] == 0 and seen[0][2] > 0, "seconds, with no pass done"
    assert seen[-1][0] <= seen[0][1]
    assert ("which is not enough" in answer.shortened) == (kind == "routed")
    assert ("shortened" in answer.to_params()) == (kind == "routed")
    assert Predictor(bank).segment(image, kind).answer.shortened == ""


@pytest.mark.parametrize("kind", ["global", "routed"])
def test_where_experts_disagree_is_part_of_what_is_said_beforehand_and_of_the_budget(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("iopfl.core.planning._WORTH_A_TRIAL", 8)
    image = tmp_path / "long.nii"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(28, 28, 28)), np.eye(4)), image)
    bank = make_bank(tmp_path / "bank", BALL)

    def segment(budget=None):
        seen = []
        predictor = Predictor(bank, budget=budget)
        found = predictor.segment(image, kind, with_disagreement=True, progress=lambda *told: seen.append(told))
        assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] <= seen[0][1], "at first at most, at last all"
        return seen[-1][1], set(found.disagreement.unique().tolist()), found.answer.shortened

    usual, percents, left = segment()
    assert max(percents) > 50 and left == ""
    passes, percents, left = segment(1e-6)
    assert passes < usual and percents <= {0, 50} and "2 of 3 experts asked" in left
