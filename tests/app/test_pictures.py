"""Pictures, OHIF's form of a request, and new banks put in place, on one server without a model of its own."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import nrrd
import numpy as np
import pytest
from PIL import Image

from iopfl.core.bank.bank import ModelBank
from label_server import LabelServer

from .site import SPOT, finish, make_site_bank, read_answer, serving, write_picture

PICTURES = {"eye1": ".png", "eye2": ".jpg", "eye3": ".tif", "eye4": ".jpeg", "eye5": ".tiff", "eye6": ".bmp"}
WIDTH, HEIGHT = 40, 60


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def studies(home) -> Path:
    folder = home / "clinic"
    folder.mkdir()
    for seed, (name, suffix) in enumerate(PICTURES.items()):
        write_picture(folder / f"{name}{suffix}", seed, (WIDTH, HEIGHT), color=seed % 2 == 1)
    (home / "turned").mkdir()
    write_picture(home / "turned" / "eye.png", 9, (HEIGHT, WIDTH))  # lying: a viewer shows it upright
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(home / "turned" / "eye.png") as lying:
        lying.save(folder / "turned.jpg", exif=exif)
    return folder


@pytest.fixture(scope="module")
def bank(home) -> ModelBank:
    return make_site_bank(home / "bank", SPOT)


@pytest.fixture(scope="module")
def server(home, studies, bank) -> LabelServer:
    with serving(studies, bank, site="", state=home / "state") as running:
        yield running


def ask(server: LabelServer, image: str, model: str = "spot", output: str = "image", **params):
    return server.post(f"/infer/{model}?image={image}&output={output}", data={"params": json.dumps(params)})


@pytest.mark.parametrize("model", ["spot", "spot_routed"])
@pytest.mark.parametrize("image", PICTURES)
def test_a_pictures_mask_is_a_picture_of_its_size(server, image, model):
    answer = ask(server, image, model)
    assert answer.ok, answer.text
    mask = Image.open(io.BytesIO(answer.content))
    assert mask.size == (WIDTH, HEIGHT)
    assert mask.format in ("PNG", "TIFF", "BMP"), "a format that would blur labels"
    assert set(np.unique(np.asarray(mask))) <= {0, 255}


def test_a_picture_that_exif_turns_is_segmented_shown_and_labeled_upright(server):
    answer = ask(server, "turned")
    shown = Image.open(io.BytesIO(answer.content))
    assert shown.size == (WIDTH, HEIGHT)
    page = Image.open(io.BytesIO(server.get("/iopfl/overlay.png?task=spot&image=turned").content))
    assert page.width < page.height
    volume = ask(server, "turned", result_extension=".nrrd")
    header = nrrd.read_header(io.BytesIO(volume.content))
    assert [size for size in header["sizes"] if size > 1] == [HEIGHT, WIDTH], "ITK's rows are the file's own"
    for name, content in (("label.png", answer.content), ("label.nrrd", volume.content)):
        sent = server.request("PUT", "/datastore/label?image=turned", files={"label": (name, content)})
        assert sent.ok, sent.text
    server.request("DELETE", "/datastore/label?id=turned&tag=final").raise_for_status()


@pytest.mark.parametrize("image", ["eye1", "eye2"])
def test_ohif_gets_raw_uint8_nrrd(server, image):
    form = {
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    }
    answer = ask(server, image, "spot_routed", **form)
    assert answer.ok, answer.text
    header = nrrd.read_header(io.BytesIO(answer.content))
    assert (header["encoding"], header["type"]) == ("raw", "unsigned char")
    assert [size for size in header["sizes"] if size > 1] == [WIDTH, HEIGHT]
    assert len(answer.content) < 2 * WIDTH * HEIGHT


def test_an_outside_site_has_no_personalized_model(server):
    assert read_answer(ask(server, "eye1", output="json"))["model"] == "global"
    options = server.get("/info/").json()["models"]["spot"]["config"]["answer_from"]
    assert "personalized" not in options and "global" in options
    refused = ask(server, "eye1", answer_from="personalized")
    assert refused.status_code == 400 and "no personalized model" in refused.json()["detail"]


def test_too_few_labels_are_said_in_the_trainings_details(server):
    assert server.post("/train/spot", json={}).ok
    task = finish(server)
    assert task["status"] == "ERROR"
    assert task["details"][-1].startswith("no labeled image, spot needs 4")
    assert not any("Traceback" in line for line in task["details"])
    assert server.get("/info/").ok


def put_in_place(source: Path, bank: Path) -> None:
    """Copy a bank's files as a synchronizing program would, the manifest last and by a rename."""
    for file in source.glob("*.safetensors"):
        shutil.copy(file, bank / file.name)
    shutil.copy(source / "manifest.json", bank / "manifest.json.new")
    (bank / "manifest.json.new").replace(bank / "manifest.json")


def alter_entry(bank: Path) -> None:
    """Flip one bit of an expert that only this bank has."""
    path = last_entry(bank)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def remove_entry(bank: Path) -> None:
    last_entry(bank).unlink()


def alter_manifest(bank: Path) -> None:
    path = bank / "manifest.json"
    path.write_text(path.read_text().replace('"tests"', '"others"'))


def sign_as_another(bank: Path) -> None:
    shutil.rmtree(bank)
    make_site_bank(bank, SPOT)


def last_entry(bank: Path) -> Path:
    return bank / json.loads((bank / "manifest.json").read_text())["entries"][-1]["file"]


def test_a_new_bank_is_served_without_a_restart_and_a_broken_one_is_refused(server, bank, home):
    newer = make_site_bank(bank.folder, SPOT, sites=("site_a", "site_b", "site_c"))
    for model in ("spot", "spot_routed"):
        params = read_answer(ask(server, "eye1", model, output="json"))
        assert params["bank"] == newer.label != bank.label
    assert list(params["routing_weights"]) == ["global", "site_a", "site_b", "site_c"]

    damages = (
        ("another checksum", alter_entry),
        ("is missing", remove_entry),
        ("signed", alter_manifest),
        ("not trusted", sign_as_another),
    )
    for more, (words, damage) in enumerate(damages, start=4):
        copy = home / damage.__name__
        # Its last expert is in no bank before, hence in no file that the served one shares.
        sites = tuple(f"site_{number}" for number in range(more))
        broken = make_site_bank(copy / "bank", SPOT, sites=sites, keys=home / "keys")
        damage(copy / "bank")
        put_in_place(copy / "bank", bank.folder)
        params = read_answer(ask(server, "eye1", output="json"))
        assert params["bank"] == newer.label != broken.label
        status = server.get("/iopfl/status").json()["tasks"][0]
        assert words in status["error"], status["error"]
        assert status["bank"] == newer.label

    healed = make_site_bank(bank.folder, SPOT)
    assert read_answer(ask(server, "eye1", output="json"))["bank"] == healed.label
    assert server.get("/iopfl/status").json()["tasks"][0]["error"] is None
