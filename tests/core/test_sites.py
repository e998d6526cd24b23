"""Site folders: cases with their labels, and splits that no patient crosses."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from iopfl.base.errors import DatasetError
from iopfl.core.sites import find_cases, find_sites, labeled, split_cases
from iopfl.core.task import read_task

from .tiny import DISK

TASK = replace(DISK, subject=r"^(p\d+)_")


def make_site(folder, names, labels=()):
    site = folder / "site"
    (site / "labels" / "final").mkdir(parents=True)
    for name in names:
        (site / name).touch()
    for name in labels:
        (site / "labels" / "final" / name).touch()
    return site


def make_patients(folder, count):
    """Patients with two images each."""
    return make_site(folder, [f"p{number:02d}_{eye}.png" for number in range(count) for eye in "LR"])


def stems(split):
    return {side: {case.stem for case in cases} for side, cases in split.items()}


def subjects(split):
    return {side: {TASK.find_subject(case.stem) for case in cases} for side, cases in split.items()}


def test_labels_are_found_under_the_images_stem_whatever_their_suffix(tmp_path):
    site = make_site(tmp_path, ["b.jpg", "a.nii.gz", "c.png", ".hidden.png", "notes.txt"], ["b.png", "a.nii.gz"])
    cases = find_cases(site)
    assert [(case.stem, case.label and case.label.name) for case in cases] == [
        ("a", "a.nii.gz"),
        ("b", "b.png"),
        ("c", None),
    ]
    assert [case.stem for case in labeled(cases)] == ["a", "b"]


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no image: expected files ending in .nii.gz"):
        find_cases(make_site(tmp_path, ["notes.txt"]))
    with pytest.raises(DatasetError, match="holds no site folder"):
        find_sites(tmp_path)
    for find in (find_cases, find_sites):
        with pytest.raises(DatasetError, match=r"no folder .*nowhere"):
            find(tmp_path / "nowhere")


def test_a_site_without_labels_folder_is_a_site(tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.png").touch()
    (tmp_path / "empty").mkdir()
    assert find_sites(tmp_path) == ["bare"]
    assert find_cases(tmp_path / "bare")[0].label is None


@pytest.mark.parametrize("count", [1, 2, 3, 10, 40])
def test_no_patient_is_on_two_sides_and_no_case_is_lost(count, tmp_path):
    cases = find_cases(make_patients(tmp_path, count))
    split = split_cases(cases, TASK, site_folder=tmp_path / "site")
    sides = subjects(split)
    assert not sides["train"] & sides["test"]
    assert not sides["train"] & sides["validation"]
    assert not sides["validation"] & sides["test"]
    assert len(split["train"]) + len(split["validation"]) + len(split["test"]) == len(split["all"]) == 2 * count
    assert sides["train"]
    if count >= 3:
        assert sides["test"]
        assert sides["validation"]


def test_the_split_does_not_depend_on_the_order_of_cases(tmp_path):
    site = make_patients(tmp_path, 12)
    cases = find_cases(site)
    split = split_cases(cases, TASK, site_folder=site)
    assert stems(split) == stems(split_cases(cases[::-1], TASK, site_folder=site))


def test_a_new_patient_moves_at_most_one_other(tmp_path):
    site = make_patients(tmp_path, 20)
    cases = find_cases(site)
    for number in range(8, 20):
        before = subjects(split_cases(cases[: 2 * number], TASK, site_folder=site))["test"]
        after = subjects(split_cases(cases[: 2 * number + 2], TASK, site_folder=site))["test"]
        assert len((before ^ after) - {f"p{number:02d}"}) <= 1


def test_splits_json_decides_and_new_cases_train(tmp_path):
    site = make_patients(tmp_path, 6)
    listed = {"train": [f"p0{n}_{e}" for n in (0, 1, 2) for e in "LR"], "test": ["p03_L", "p03_R"]}
    (tmp_path / "splits.json").write_text(json.dumps({"site": listed}))
    split = stems(split_cases(find_cases(site), TASK, site_folder=site))
    assert split["test"] == {"p03_L", "p03_R"}
    assert {"p04_L", "p05_R"} <= split["train"] | split["validation"]
    assert split["validation"]


def test_a_site_that_splits_json_does_not_name_is_split_by_itself(tmp_path):
    site = make_patients(tmp_path, 6)
    alone = stems(split_cases(find_cases(site), TASK, site_folder=site))
    (tmp_path / "splits.json").write_text(json.dumps({"another": {"train": [], "test": []}}))
    assert stems(split_cases(find_cases(site), TASK, site_folder=site)) == alone


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", 'splits.json: expected {"SITE".*found no valid JSON'),
        ("\xff", "found no valid JSON"),
        ("[]", "found list"),
        ('{"site": []}', "site has no such lists"),
        ('{"site": {"train": []}}', "site has no such lists"),
        ('{"site": {"train": [], "test": "p01_L"}}', "site has no such lists"),
        ('{"site": {"train": [], "test": [["p01_L"]]}}', "site has no such lists"),
        ('{"site": {"train": [], "test": [7]}}', "site has no such lists"),
        ('{"site": {"train": ["p00_R"], "test": ["p00_L"]}}', r"1 subject\(s\) of site both train and test"),
    ],
)
def test_a_broken_splits_json_is_refused(text, message, tmp_path):
    site = make_patients(tmp_path, 3)
    (tmp_path / "splits.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=message):
        split_cases(find_cases(site), TASK, site_folder=site)


def test_no_validation_share_leaves_validation_empty(tmp_path):
    site = make_patients(tmp_path, 6)
    task = replace(TASK, training=replace(TASK.training, validation_share=0.0))
    assert split_cases(find_cases(site), task, site_folder=site)["validation"] == []


def test_phantoms_are_split_as_their_splits_json_says(phantom_sites):
    assert find_sites(phantom_sites) == ["site_a", "site_d"]
    listed = json.loads((phantom_sites / "splits.json").read_text())
    for site in find_sites(phantom_sites):
        cases = find_cases(phantom_sites / site)
        split = stems(split_cases(cases, read_task("prostate"), site_folder=phantom_sites / site))
        assert split["test"] == set(listed[site]["test"])
        assert split["train"] | split["validation"] == set(listed[site]["train"])


@pytest.mark.parametrize(
    ("site", "task"),
    [
        ("hippocampus", "hippocampus"),
        ("retina-vessel/CHASE_DB1", "vessel"),
        ("retina-vessel/HRF", "vessel"),
        ("prostate-saml-mini/BIDMC", "prostate"),
        ("fundus-odoc-mini/RIM-ONE-r3", "optic_disc_cup"),
    ],
)
def test_real_sites_split_without_a_patient_on_two_sides(site, task, shared_data):
    task, folder = read_task(task), shared_data / site
    cases = find_cases(folder)
    assert len(labeled(cases)) == len(cases)
    split = split_cases(cases, task, site_folder=folder)
    sides = {side: {task.find_subject(case.stem) for case in split[side]} for side in ("train", "validation", "test")}
    assert all(sides.values())
    assert not sides["test"] & (sides["train"] | sides["validation"])
    assert not sides["train"] & sides["validation"]


def test_hidden_files_are_no_images_and_endings_in_upper_case_are(tmp_path):
    site = make_site(tmp_path, ["UPPER.NII.GZ", "._UPPER.NII.GZ", "Mixed.Png", ".x.png"], ["upper.png", "Mixed.PNG"])
    assert [(case.image.name, case.label and case.label.name) for case in find_cases(site)] == [
        ("Mixed.Png", "Mixed.PNG"),
        ("UPPER.NII.GZ", None),
    ]
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "a.png").touch()
    assert find_sites(tmp_path) == ["site"]


def test_of_two_files_of_one_stem_one_is_taken_and_the_other_named(tmp_path, caplog):
    site = make_site(tmp_path, ["eye.png", "eye.JPG", "case.nii", "case.nii.gz"], ["eye.jpg", "eye.png"])
    cases = find_cases(site)
    assert [case.image.name for case in cases] == ["case.nii.gz", "eye.JPG"]
    assert cases[1].label.name == "eye.png"
    for line in ("case.nii beside", "eye.png beside", "eye.jpg beside"):
        assert f"not {line}" in caplog.text
