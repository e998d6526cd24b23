"""Scores of hand-made masks against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from iopfl.base.errors import DatasetError, SeriesError
from iopfl.core.answers import Answer, Segmentation
from iopfl.core.evaluation import evaluate, score_case, select_cases
from iopfl.core.predictor import Predictor
from iopfl.core.sites import Case, find_cases
from iopfl.core.task import read_task
from iopfl.core.transforms import read_image

from .tiny import BALL, DISK, make_bank

SPACING = (0.5, 1.0, 3.0)
BOTH = replace(BALL, regions={"all": ("front", "back"), "back": ("back",)})


def blank():
    return np.zeros((12, 10, 8), np.uint8)


def case_of(folder, label, spacing=SPACING):
    affine = np.diag([*spacing, 1.0])
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).normal(size=label.shape).astype(np.float32), affine), folder / "i.nii"
    )
    nib.save(nib.Nifti1Image(label, affine), folder / "l.nii")
    return Case("i", folder / "i.nii", folder / "l.nii")


def score(case, mask, task):
    answer = Answer(task=task.name, bank="1-0", model="global", seconds=0.5)
    return score_case(Segmentation(torch.from_numpy(mask), read_image(case.image, task), answer), case, task)


@pytest.mark.parametrize(("axis", "voxels", "expected"), [(0, 4, 2.0), (1, 2, 2.0), (2, 1, 3.0)])
def test_distances_of_parallel_plates_are_in_mm_along_each_axis(axis, voxels, expected, tmp_path):
    label = blank()
    plate = [slice(None)] * 3
    plate[axis] = slice(3, 4)
    label[tuple(plate)] = 1
    result = score(case_of(tmp_path, label), np.roll(label, voxels, axis), replace(BALL, labels={"front": 1}))
    assert result.unit == "mm"
    assert result.hd95["front"] == pytest.approx(expected)
    assert result.assd["front"] == pytest.approx(expected)
    assert result.dice["front"] == 0.0


def test_dice_is_the_overlap_and_a_perfect_mask_has_no_distance(tmp_path):
    label, mask = blank(), blank()
    label[2:6, 2:6, 2:6] = 1
    mask[2:6, 2:6, 3:7] = 1
    task = replace(BALL, labels={"front": 1})
    case = case_of(tmp_path, label)
    assert score(case, mask, task).dice["front"] == pytest.approx(0.75)
    perfect = score(case, label, task)
    assert (perfect.dice["front"], perfect.hd95["front"], perfect.assd["front"]) == (1.0, 0.0, 0.0)


def test_one_far_voxel_moves_hd95_less_than_the_whole_mask_would(tmp_path):
    label = blank()
    label[2:10, 2:8, 2:4] = 1
    mask = label.copy()
    mask[11, 9, 7] = 1
    result = score(case_of(tmp_path, label), mask, replace(BALL, labels={"front": 1}))
    assert result.hd95["front"] == 0.0
    assert 0 < result.assd["front"] < 1


def test_regions_take_labels_together(tmp_path):
    """A rim taken for cup is wrong for the cup, not for the disc."""
    label, mask = blank(), blank()
    label[2:4, 2:6, 2:6], label[4:6, 2:6, 2:6] = 1, 2
    mask[2:6, 2:6, 2:6] = 2
    result = score(case_of(tmp_path, label), mask, BOTH)
    assert result.dice == {"all": 1.0, "back": pytest.approx(2 / 3)}
    assert result.hd95["all"] == 0
    assert read_task("optic_disc_cup").scored_regions == {"disc": (1, 2), "cup": (2,)}


@pytest.mark.parametrize(
    ("reference", "predicted", "dice"), [(True, False, 0.0), (False, True, math.nan), (False, False, math.nan)]
)
def test_empty_masks_are_scored_as_documented(reference, predicted, dice, tmp_path):
    filled = blank()
    filled[3:6, 3:6, 3:6] = 1
    label, mask = (filled if full else blank() for full in (reference, predicted))
    result = score(case_of(tmp_path, label), mask, replace(BALL, labels={"front": 1}))
    assert result.dice["front"] == pytest.approx(dice, nan_ok=True)
    assert math.isnan(result.hd95["front"])
    assert math.isnan(result.assd["front"])


def test_pictures_are_scored_in_pixels(tmp_path):
    label, mask = np.zeros((20, 30), np.uint8), np.zeros((30, 20, 1), np.uint8)
    label[:, 5] = 7  # a column of the picture
    mask[9] = 7  # the column four to its right
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30), dtype=np.uint8)).save(
        tmp_path / "i.png", dpi=(300, 300)
    )
    Image.fromarray(label).save(tmp_path / "l.png")
    result = score(Case("i", tmp_path / "i.png", tmp_path / "l.png"), mask, replace(DISK, labels={"disk": 7}))
    assert result.unit == "pixels"
    assert result.hd95["disk"] == pytest.approx(4.0)
    assert result.assd["disk"] == pytest.approx(4.0)


def test_scoring_needs_a_label_that_fits(tmp_path):
    label = blank()
    case = case_of(tmp_path, label)
    with pytest.raises(DatasetError, match="i: expected a label to score against"):
        score(replace(case, label=None), label, BALL)
    label[0, 0, 0] = 9
    with pytest.raises(SeriesError, match="the label holds"):
        score(case_of(tmp_path, label), label, BALL)


@pytest.mark.parametrize("kind", [None, "routed", "published"])
def test_a_site_is_evaluated_and_the_result_is_json(kind, tmp_path, ball_site, monkeypatch):
    monkeypatch.setattr("iopfl.core.published.EPOCHS", 1)
    cases = find_cases(ball_site)[:2]
    done, seen = [], []
    result = evaluate(
        Predictor(make_bank(tmp_path / "bank", BALL), site="north"),
        cases,
        kind,
        site="south",
        progress=lambda *step: done.append(step),
        inspect=lambda case, segmentation: seen.append((case.stem, segmentation.answer.model)),
    )
    model = kind or "personalized"
    assert done == [(1, 2), (2, 2)]
    assert seen == [(case.stem, model) for case in cases]
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (values["site"], values["model"], values["images"], values["unit"]) == ("south", model, 2, "mm")
    dice = [case.dice[region] for case in result.cases for region in ("front", "back")]
    assert result.mean("dice") == pytest.approx(float(np.nanmean(dice)))
    assert result.mean("dice", "front") == pytest.approx(float(np.nanmean(dice[::2])))


def test_undefined_values_are_left_out_of_means_and_counted(tmp_path, ball_site):
    result = evaluate(Predictor(make_bank(tmp_path / "bank", BALL)), find_cases(ball_site)[:1], None, site="s")
    one = result.cases[0]
    undefined = replace(one, dice={"front": math.nan, "back": 0.5})
    two = replace(result, cases=(undefined, replace(one, dice={"front": 0.7, "back": 0.6})))
    assert two.mean("dice") == pytest.approx(0.6)
    assert two.undefined("dice") == 1
    assert two.to_dict()["cases"][0]["dice"] == {"front": None, "back": 0.5}
    none = replace(result, cases=(replace(one, dice={"front": math.nan}),))
    assert none.to_dict()["dice"] is None


def test_a_split_without_labels_and_an_unknown_split_are_named(disk_site, tmp_path):
    with pytest.raises(DatasetError, match="no split 'exam': expected one of train, validation, test, all"):
        select_cases(disk_site, DISK, "exam")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.png").touch()
    with pytest.raises(DatasetError, match="bare: no labeled image in split 'all'"):
        select_cases(tmp_path / "bare", DISK, "all")
    assert len(select_cases(disk_site, DISK, "all")) == 10


def test_how_far_each_image_is_can_be_followed(tmp_path, ball_site):
    told = {}
    cases = find_cases(ball_site)[:2]

    @contextmanager
    def follow(case):
        yield lambda done, total, expected: told.setdefault(case.stem, []).append((done, total))

    evaluate(Predictor(make_bank(tmp_path / "bank", BALL)), cases, None, site="s", follow=follow)
    assert [*told] == [case.stem for case in cases]
    for passes in told.values():
        assert passes == sorted(passes) and passes[0][0] == 0 and passes[-1][0] == passes[-1][1] > 0
