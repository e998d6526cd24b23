"""What is no task's image is not listed, offered or counted; who names it is answered, with a warning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dicomio.phantoms import series_uid
from iopfl.core.criteria import Criteria
from iopfl.core.image_facts import read_facts
from iopfl.core.sites import find_cases
from label_server import wait_until

from .archive import CT, SERIES, TASK, draw, send, until
from .site import APP, GLAND, SPOT, conf_of, make_site_bank, oblique_affine, write_picture, write_scan

AXIAL = replace(GLAND, images=Criteria(kind="volume", orientations=("axial",), min_slices=3))
EYE = replace(SPOT, name="eye", channels=3, images=Criteria(kind="picture"))
PELVIS = replace(
    TASK, images=Criteria(body_parts=("*PROSTAT*", "*PELVI*"), description="^(?!.*adc)", orientations=("axial",))
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder of volumes and photographs, with what is neither task's among them."""
    from iopfl.compat import apply_tasks

    apply_tasks()
    folder = tmp_path_factory.mktemp("selecting")
    site = folder / "site_a"
    for number in range(3):
        write_scan(site, f"case{number}", number, labeled=number == 0)
    sagittal = np.roll(oblique_affine(), 1, axis=0)
    sagittal[3] = [0, 0, 0, 1]
    sagittal[:3, :3] = np.roll(oblique_affine()[:3, :3], 1, axis=0)
    nib.save(nib.Nifti1Image(np.ones((28, 36, 5), np.int16), sagittal), site / "side.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((28, 36, 2), np.int16), oblique_affine()), site / "thin.nii.gz")
    for number in range(2):
        write_picture(site / f"eye{number}.png", number, color=True)
    assert read_facts(site / "side.nii.gz").orientation == "sagittal"
    make_site_bank(folder / "gland", AXIAL, keys=folder / "keys")
    make_site_bank(folder / "eye", EYE, keys=folder / "keys")
    return folder


@pytest.fixture(scope="module")
def app(home):
    """The app of a server of both tasks."""
    from iopfl.app import IOPFLApp
    from iopfl.core.bank.bank import ModelBank

    conf = {key: str(value) for key, value in conf_of(ModelBank.open(home / "gland")).items()}
    conf |= {"bank": f"{home / 'gland'},{home / 'eye'}", "state": str(home / "state")}
    return IOPFLApp(str(APP), str(home / "site_a"), conf)


def test_a_folder_offers_and_counts_what_is_a_tasks(app, home):
    store = app.datastore()
    by_endings = store.images_for(app.models.tasks["eye"], store.list_images())
    assert sorted(by_endings) == ["eye0", "eye1"]
    store.start_looking()
    wait_until(lambda: len(store._reasons) == 7, 30, what="all images to be looked at")
    assert sorted(store.get_unlabeled_images()) == ["case1", "case2", "eye0", "eye1"]
    assert (store.status()["total"], store.status()["completed"]) == (5, 1)
    assert len(store.list_images()) == len(find_cases(home / "site_a")) == 7
    assert sorted(store.images_for(app.models.tasks["gland"], store.list_images())) == ["case0", "case1", "case2"]
    assert store.find_mismatches("side") == {
        "gland": "its slices are sagittal, axial ones are expected",
        "eye": "it is a volume, a picture is expected",
    }
    assert [task.name for task in store.tasks_for("eye0")] == ["eye"]
    assert [task.name for task in store.tasks_for("thin")] == ["gland", "eye"]  # somebody opened it all the same


@pytest.mark.parametrize("strategy", ["gland_disagreement", "random"])
def test_next_sample_is_an_image_of_the_task_even_before_it_was_looked_at(app, strategy):
    from iopfl.labels import selecting

    app.datastore()._reasons.clear()
    before, selecting._LOOK_SECONDS = selecting._LOOK_SECONDS, -1.0
    try:
        found = {app.next_sample({"strategy": strategy, "client_id": f"{strategy}{n}"})["id"] for n in range(2)}
    finally:
        selecting._LOOK_SECONDS = before
        app.leases._leases.clear()
    assert "case1" in app.datastore().get_unlabeled_images()
    assert found <= ({"case1", "case2"} if strategy != "random" else {"case1", "case2", "eye0", "eye1"})


def test_who_names_an_image_outside_the_task_is_answered_with_a_warning(app, home):
    for image, model in (("side", "gland"), ("thin", "gland_routed"), ("eye0", "gland")):
        params = app.infer({"model": model, "image": image})["params"]
        assert params["warning"].startswith("this image is outside task gland: "), params
    assert "warning" not in app.infer({"model": "gland", "image": "case1"})["params"]
    sent = {"model": "gland", "image": str(home / "site_a" / "side.nii.gz")}
    assert "its slices are sagittal" in app.infer(sent)["params"]["warning"]


def test_a_batch_takes_the_tasks_images_and_those_that_are_named(app):
    asked = {"model": "gland", "images": "unlabeled", "device": "cpu", "max_workers": 1}
    assert sorted(app.batch_infer(asked)) == ["case1", "case2"]
    found = app.batch_infer({**asked, "images": ["side", "case1"]})
    assert sorted(found) == ["case1", "side"] and "warning" in found["side"]["params"]


def test_scores_are_of_the_tasks_images(app):
    assert app.scoring({"method": "eye_agreement"})["images"] == 2


def test_the_command_warns_of_an_image_outside_the_task(home, capsys, tmp_path):
    from iopfl.cli.commands import main

    images = [str(home / "site_a" / name) for name in ("side.nii.gz", "case1.nii.gz")]
    whole = ["segment", *images, "--bank", str(home / "gland"), "--keys", str(home / "keys"), "-o", str(tmp_path)]
    assert main([*whole, "--json"]) == 0
    printed = capsys.readouterr()
    side, case = [json.loads(line) for line in printed.out.splitlines()]
    assert "its slices are sagittal" in side["warning"] and "warning" not in case
    assert printed.err.count("side.nii.gz: this image is outside task gland") == 1


def test_a_pacs_lists_offers_and_counts_what_is_a_tasks(pacs, open_store, tmp_path):
    send(pacs, tmp_path, "brain", BodyPartExamined="BRAIN")
    send(pacs, tmp_path, "map", SeriesDescription="ADC")
    send(pacs, tmp_path, "side", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    send(pacs, tmp_path, "pelvis", BodyPartExamined="PELVIS")
    expected = sorted([*SERIES, series_uid("pelvis")])
    store = open_store(pacs.dicomweb_url, task=PELVIS)
    until(lambda: sorted(store.list_images()) == expected, "the headers to be looked at")
    assert sorted(store.get_unlabeled_images()) == expected == sorted(store.json()["objects"])
    assert store.status()["total"] == 3 and sorted(store.others()) == sorted(
        series_uid(name) for name in ("brain", "map", "side")
    )
    assert store.find_mismatches(series_uid("brain")) == {"gland": "body part BRAIN is none of *PROSTAT*, *PELVI*"}
    # Whoever names it gets it; once it has a label, it counts.
    uid = series_uid("brain")
    assert Path(store.get_image_uri(uid)).is_file() and store.get_image_info(uid)["Modality"] == "MR"
    store.submit(uid, draw(tmp_path / "drawn.nii.gz", slice(1, 4), store.get_image_uri(uid)), {})
    assert uid in store.list_images() and (store.status()["total"], store.status()["completed"]) == (4, 1)


def test_a_filter_of_the_administrator_counts_instead_of_the_task(pacs, open_store, tmp_path):
    send(pacs, tmp_path, "brain", BodyPartExamined="BRAIN")
    asked = open_store(pacs.dicomweb_url, task=PELVIS, filters={"BodyPartExamined": "BRAIN"})
    assert asked.list_images() == [series_uid("brain")]
    both = open_store(pacs.dicomweb_url, tasks={"gland": PELVIS, "ct": CT}, state="both")
    until(lambda: series_uid("brain") not in both.list_images(), "the headers to be looked at")
    assert [task.name for task in both.tasks_of(SERIES[0])] == ["gland"]
