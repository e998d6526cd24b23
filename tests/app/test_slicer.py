"""What 3D Slicer does, with MONAI Label's own client against the real server process."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import psutil
import pytest
from monailabel.client import MONAILabelClient

from iopfl.core.weights import read_weights
from label_server import LabelServer

from .site import GLAND, SITES, await_line, finish, make_site_bank, oblique_affine, serving, write_scans

IMAGE = "case09"
EXPERTS = ["global", *SITES]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Where the server's folders lie."""
    return tmp_path_factory.mktemp("slicer")


@pytest.fixture(scope="module")
def studies(home) -> Path:
    return write_scans(home / "site_a", labeled=8, unlabeled=3)


@pytest.fixture(scope="module")
def bank(home):
    return make_site_bank(home / "bank", GLAND)


@pytest.fixture(scope="module")
def server(home, studies, bank) -> LabelServer:
    with serving(studies, bank, state=home / "state") as running:
        yield running


@pytest.fixture(scope="module")
def client(server, home) -> MONAILabelClient:
    folder = home / "client"
    folder.mkdir()
    return MONAILabelClient(server.url, str(folder), "slicer-of-the-tests")


def check_mask(file: str | Path, image: Path) -> np.ndarray:
    """The mask's values, once its grid was found to be the image's."""
    mask, source = nib.load(file), nib.load(image)
    assert mask.shape == source.shape
    assert np.allclose(mask.affine, source.affine, atol=1e-4)
    assert mask.get_data_dtype() == np.uint8
    values = np.asarray(mask.dataobj)
    assert set(np.unique(values)) <= {0, 2}
    return values


def check_finite(values) -> None:
    if isinstance(values, dict):
        for value in values.values():
            check_finite(value)
    elif not isinstance(values, str):
        assert values is not None and math.isfinite(values)


def test_info_is_what_slicer_and_ohif_read(client):
    info = client.info()
    assert "config" not in info
    assert isinstance(info["labels"], list) and info["labels"] == ["gland"]
    assert set(info["models"]) == {"gland", "gland_routed"}
    assert {model["type"] for model in info["models"].values()} == {"segmentation"}
    assert all(model["labels"] == {"gland": 2} for model in info["models"].values())
    options = info["models"]["gland"]["config"]
    assert options["answer_from"][1:] == ["personalized", "global", "average"] and options["quality"] is False
    assert set(info["strategies"]) == {"random", "gland_disagreement"}
    assert set(info["scoring"]) == {"gland_dice", "gland_agreement"}
    assert set(info["trainers"]) == {"gland"}
    assert (info["datastore"]["total"], info["datastore"]["completed"]) == (11, 8)
    check_finite(info["train_stats"]["gland"])


@pytest.mark.parametrize("strategy", ["random", "gland_disagreement"])
def test_next_sample_is_an_image_without_label(client, studies, strategy):
    sample = client.next_sample(strategy, {})
    assert sample["id"] in ("case08", "case09", "case10")
    assert sample["path"] == f"{sample['id']}.nii.gz"  # where the server keeps it is nobody's business
    if strategy != "random":
        assert 0 <= sample["agreement"] <= 1


@pytest.mark.parametrize("model", ["gland", "gland_routed"])
def test_a_mask_lies_on_its_images_grid_and_says_where_it_comes_from(client, bank, studies, model):
    file, params = client.infer(model, IMAGE, {})
    check_mask(file, studies / f"{IMAGE}.nii.gz")
    assert (params["task"], params["bank"]) == ("gland", bank.label)
    assert params["seconds"] > 0
    assert params["label_names"] == {"no label 1": 1, "gland": 2}
    if model == "gland_routed":
        assert params["model"] == "routed"
        assert list(params["routing_weights"]) == EXPERTS
        assert sum(params["routing_weights"].values()) == pytest.approx(1, abs=1e-3)
        assert 0 <= params["quality"] <= 1
    else:
        assert params["model"] in ("personalized", "local")
        assert params["reason"] == "favored by this site's validation labels"


def test_an_answer_may_be_a_segmentation_with_the_labels_names(client):
    file, _ = client.infer("gland", IMAGE, {"result_extension": ".seg.nrrd"})
    assert file.endswith(".seg.nrrd")
    header = nrrd.read_header(file)
    assert (header["Segment0_Name"], header["Segment0_LabelValue"]) == ("gland", "2")


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("personalized", "personalized"),
        ("global", "global"),
        ("average", "average"),
        (["global", "average"], "global"),  # Slicer may send the whole combo box
    ],
)
def test_a_client_may_choose_who_answers(client, asked, answered):
    params = client.infer("gland", IMAGE, {"answer_from": asked, "quality": asked == "global"})[1]
    assert params["model"] == answered
    assert ("quality" in params) == (asked == "global")
    assert 0 <= params.get("quality", 0) <= 1


def test_a_model_that_no_client_is_offered_is_refused(server):
    refused = server.post(f"/infer/gland?image={IMAGE}", data={"params": json.dumps({"answer_from": "the best"})})
    assert refused.status_code == 400
    assert "'the best'" in refused.json()["detail"] and "personalized" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        *(
            (ending, "does not fit a picture: ask for one of .nii.gz, .nii, .nrrd")
            for ending in (".png", ".tif", ".BMP")
        ),
        *((ending, "is not served: ask for one of .nii.gz") for ending in (".jpg", ".mhd", ".dcm", ".nhdr", ".xyz")),
    ],
)
@pytest.mark.parametrize("model", ["gland", "gland_routed"])
def test_an_answer_is_in_the_format_that_was_asked_for_or_refused(server, model, asked, words):
    form = {"params": json.dumps({"result_extension": asked})}
    refused = server.post(f"/infer/{model}?image={IMAGE}&output=image", data=form)
    assert (refused.status_code, words in refused.json()["detail"]) == (400, True), refused.text
    assert refused.json()["detail"].startswith(f"result_extension {asked!r}")


def test_a_session_of_several_files_is_no_image(server, studies):
    files = [("files", (f"{name}.nii.gz", (studies / f"{IMAGE}.nii.gz").read_bytes())) for name in "ab"]
    session = server.request("PUT", "/session/", files=files).json()["session_id"]
    refused = server.post(f"/infer/gland?image=a&session_id={session}")
    assert (refused.status_code, refused.json()["detail"].startswith("expected a session of one image")) == (400, True)


def test_an_inference_leaves_no_file_behind(server, client, home):
    before = set((home / "state" / "tmp").rglob("*"))
    assert server.post(f"/infer/gland?image={IMAGE}&output=image").ok
    refused = server.post(f"/infer/gland?image={IMAGE}", data={"params": json.dumps({"result_extension": ".png"})})
    assert refused.status_code == 400
    left = [path for path in set((home / "state" / "tmp").rglob("*")) - before if path.is_file()]
    assert not left


def test_the_same_question_gets_the_same_answer(client):
    first, second = (np.asarray(nib.load(client.infer("gland_routed", IMAGE, {})[0]).dataobj) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_submitted_label_completes_its_image_and_trains(client, studies, home):
    mask = nib.Nifti1Image(np.full((28, 36, 5), 2, np.uint8), oblique_affine())
    nib.save(mask, home / "drawn.nii.gz")
    told = {"label_info": [{"name": "gland", "idx": 2}]}
    client.save_label("case08", str(home / "drawn.nii.gz"), params=told)
    stored = studies / "labels" / "final" / "case08.nii.gz"
    assert np.array_equal(np.asarray(nib.load(stored).dataobj), np.asarray(mask.dataobj))
    assert client.info()["datastore"]["completed"] == 9
    described = client.datastore()["objects"]["case08"]["labels"]["final"]["info"]
    assert described["label_info"] == told["label_info"] and described["client_id"] == "slicer-of-the-tests"
    stored.unlink()  # a square is no disk: nothing to train on


def test_scores_reach_the_images_information(server):
    assert server.post("/scoring/gland_dice?run_sync=true", json={}).json()["images"] >= 8
    assert server.post("/scoring/gland_agreement?run_sync=true", json={}).json()["images"] == 11
    scored = server.get("/datastore/image/info?image=case00").json()
    assert 0 <= scored["dice"]["gland"] <= 1 and scored["dice"]["model"] in ("personalized", "local")
    assert 0 <= scored["quality"]["agreement"] <= 1


def test_batch_inference_segments_all_that_is_unlabeled(server, studies):
    assert server.post("/batch/infer/gland", params={"images": "unlabeled"}, json={}).ok
    task = finish(server, "/batch/infer")
    assert task["status"] == "DONE", task["details"]
    for name in ("case09", "case10"):
        check_mask(studies / "labels" / "original" / f"{name}.nii.gz", studies / f"{name}.nii.gz")


def test_a_training_reports_publishes_and_serves_without_a_restart(server, client, bank, home):
    assert client.train_start("gland", {"epochs": 12})["status"] in ("SUBMITTED", "RUNNING")
    assert "validation Dice" in await_line(server, "epoch 1/12")
    assert client.train_status(check_if_running=True)
    stats = client.info()["train_stats"]["gland"]
    is_over = stats["epoch"] == stats["total_epochs"]
    assert ("total_time" in stats, "current_time" in stats) == (is_over, not is_over), "Slicer's bar stays at 0 with it"
    task = finish(server)
    assert task["status"] == "DONE", task["details"]
    assert any("epoch 12/12" in line for line in task["details"])
    stats = client.info()["train_stats"]["gland"]
    check_finite(stats)
    assert (stats["epoch"], stats["total_epochs"]) == (12, 12) and stats["total_time"]
    assert stats["best_metric"] > max(stats["others"].values()), "the local model was to win, choose another seed"
    params = client.infer("gland", IMAGE, {})[1]
    assert params["model"] == "local"
    assert params["metrics"]["local"] == pytest.approx(stats["best_metric"], abs=1e-3)
    assert client.infer("gland", IMAGE, {"answer_from": "personalized"})[1]["model"] == "personalized"
    choice = server.get("/iopfl/status").json()["tasks"][0]["choice"]
    assert choice["kind"] == "local"
    assert read_weights(home / "state" / "local" / "gland.safetensors")[0].keys() == bank.experts[0].keys()


def test_a_stopped_training_leaves_a_whole_model(server, client, home):
    client.train_start("gland", {"epochs": 5000})
    await_line(server, "epoch 2/5000")
    child = psutil.Process(server.pid).children()[0]
    assert server.request("DELETE", "/train/").json()["status"] == "STOPPED"
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running()
    assert not client.train_status(check_if_running=True)
    weights, metrics = read_weights(home / "state" / "local" / "gland.safetensors")
    assert weights and {"local", "personalized", "global"} == set(metrics)
    assert client.infer("gland", IMAGE, {})[1]["model"] == "local"
    assert not list((home / "state" / "local").glob(".*"))
