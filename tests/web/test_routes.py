"""The page's routes, through the HTTP interface, with real banks and images."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http import HTTPStatus

import nrrd
import numpy as np
import pytest
from PIL import Image

from iopfl.core.predictor import Predictor
from iopfl.core.sites import IMAGE_SUFFIXES
from iopfl.labels.datastore import VersionedDatastore
from iopfl.labels.final_rule import FinalRule
from iopfl.web import routes, size_routes
from iopfl.web.answers import Answers

from .conftest import GLAND, make_bank

ANSWER = "/iopfl/answer"
PICTURE = {"task": "fundus", "image": "eye1"}
VOLUME = {"task": "gland", "image": "scan"}


def open_png(response) -> Image.Image:
    assert response.status_code == HTTPStatus.OK, response.text
    assert response.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(response.content))


def test_the_page_and_all_it_names_come_from_this_server(client):
    page = client.get("/")
    assert page.status_code == HTTPStatus.OK
    assert "default-src 'none'" in page.headers["content-security-policy"]
    named = re.findall(r'(?:href|src)="(iopfl/static/[^"]+)"', page.text)
    assert len(named) == 3
    for name in named:
        found = client.get(f"/{name}")
        assert found.status_code == HTTPStatus.OK
        assert not re.search(r"https?://", found.text)
    assert not re.search(r"https?://", page.text)
    assert client.get("/iopfl/static/routes.py").status_code == HTTPStatus.NOT_FOUND
    assert client.get("/iopfl/static/..%2froutes.py").status_code == HTTPStatus.NOT_FOUND


def test_status_says_who_knows_what(client):
    status = client.get("/iopfl/status").json()
    assert status["site"] == "north"
    fundus = next(task for task in status["tasks"] if task["name"] == "fundus")
    assert [entry["name"] for entry in fundus["entries"]] == ["global", "north", "south"]
    assert fundus["choice"]["kind"] == "personalized"
    assert len({label["color"] for label in fundus["labels"]}) == 2


def test_status_survives_a_task_whose_bank_is_broken(client, app, monkeypatch):
    from iopfl.base.errors import BankError

    def describe(name):
        raise BankError(f"bank of {name}: checksum")

    monkeypatch.setattr(app.models, "describe", describe)
    assert "checksum" in client.get("/iopfl/status").json()["tasks"][0]["error"]


def test_images_are_listed_with_their_labels(client):
    images = client.get("/iopfl/images").json()["images"]
    assert {image["id"]: image["is_labeled"] for image in images} == {
        "broken": False, "eye1": True, "eye2": False, "scan": True,
    }  # fmt: skip


@pytest.mark.parametrize(("model", "kind"), [("routed", "routed"), ("site", "personalized"), ("global", "global")])
def test_an_answer_says_which_model_it_came_from(client, model, kind):
    answer = client.get(ANSWER, params={**PICTURE, "model": model}).json()
    assert answer["params"]["model"] == kind
    assert answer["slices"] == 1
    assert [label["name"] for label in answer["labels"]] == ["rim", "cup"]
    assert {label["long_axis_unit"] for label in answer["labels"]} == {"pixels"}
    assert set(answer["reference"]["dice"]) == {"disc", "cup"}
    assert ("quality" in answer["params"]) == (kind == "routed")


def test_routing_weights_are_shares_of_the_experts(client):
    answer = client.get(ANSWER, params=VOLUME).json()
    assert list(answer["params"]["routing_weights"]) == ["global", "north", "south"]
    assert sum(answer["params"]["routing_weights"].values()) == pytest.approx(1, abs=1e-3)
    assert answer["slices"] == 5
    assert (answer["labels"][0]["unit"], answer["labels"][0]["long_axis_unit"]) == ("mL", "mm")
    size = answer["params"]["measurements"][answer["labels"][0]["name"]]
    assert answer["labels"][0]["amount"] == pytest.approx(size["volume_ml"], abs=1e-4)


def test_every_slice_of_a_volume_has_a_picture_in_its_proportions(client):
    pictures = [open_png(client.get("/iopfl/overlay.png", params={**VOLUME, "slice": z})) for z in range(5)]
    assert pictures[0].tobytes() != pictures[1].tobytes()
    width, height = pictures[0].size  # 24 pixels of 1 mm by 30 of 0.5 mm
    assert width / height == pytest.approx(24 / 15, rel=0.01)
    outside = client.get("/iopfl/overlay.png", params={**VOLUME, "slice": 5})
    assert outside.status_code == HTTPStatus.BAD_REQUEST
    assert "slices 0 to 4" in outside.json()["detail"]


def test_the_clinicians_label_is_drawn_when_asked_for(client):
    plain = open_png(client.get("/iopfl/overlay.png", params=PICTURE))
    compared = open_png(client.get("/iopfl/overlay.png", params={**PICTURE, "reference": True}))
    assert plain.tobytes() != compared.tobytes()


def test_a_label_for_another_task_is_explained(client):
    answer = client.get(ANSWER, params={"task": "gland", "image": "eye1", "model": "global"}).json()
    assert not answer["reference"]["is_there"]
    assert "the label holds" in answer["reference"]["problem"]


def test_each_answer_is_computed_once_and_anew_for_a_new_bank(client, app):
    for _ in range(2):
        client.get(ANSWER, params=PICTURE)
        client.get("/iopfl/overlay.png", params=PICTURE)
    assert app.models.computed == [("fundus", "routed")]
    old = app.models.predictors["fundus"]
    app.models.predictors["fundus"] = Predictor(old.bank, site="south")
    assert client.get(ANSWER, params={**PICTURE, "model": "site"}).json()["params"]["model"] == "personalized"
    client.get(ANSWER, params=PICTURE)
    assert app.models.computed == [("fundus", "routed")]  # the new predictor, not the old one's answer, was asked


def test_what_is_kept_is_bounded(client, app, monkeypatch):
    asked = {"task": "fundus", "model": "global"}
    client.get(ANSWER, params={**asked, "image": "eye1"})
    [size] = [kept.size for key, kept in routes.answers._kept.items() if key[0] == "answer"]
    monkeypatch.setattr(routes, "answers", Answers())
    app.models.settings.page_cache_gb = 1.5 * size / 1e9
    app.models.computed.clear()
    for image in ("eye1", "eye2", "eye1", "eye1"):
        client.get(ANSWER, params={**asked, "image": image})
    assert app.models.computed == [("fundus", "global")] * 3


def test_an_answer_that_is_larger_than_all_that_is_kept_is_refused_and_computed_once(client, app):
    app.models.settings.page_cache_gb = 1e-9
    for _ in range(2):
        refused = client.get(ANSWER, params={"task": "fundus", "image": "eye1", "model": "global"})
        assert refused.status_code == 422 and "page_cache_gb" in refused.json()["detail"]
    assert app.models.computed == [("fundus", "global")]
    assert not [kept for kept in routes.answers._kept.values() if kept.size]


def test_a_server_with_too_much_to_do_says_so(client, monkeypatch):
    monkeypatch.setattr(routes, "answers", Answers(waiting=0))
    refused = client.get(ANSWER, params=PICTURE)
    assert refused.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert "try again" in refused.json()["detail"]


def test_slices_of_an_answer_that_is_there_wait_for_nobody(client, app):
    client.get(ANSWER, params=PICTURE)
    app.models.lock("fundus").acquire()  # as another image's answer is being computed
    with ThreadPoolExecutor() as pool:
        try:
            picture = pool.submit(client.get, "/iopfl/overlay.png", params=PICTURE)
            assert picture.result(timeout=10).status_code == HTTPStatus.OK
        finally:
            app.models.lock("fundus").release()


def test_where_the_experts_disagree_is_computed_once_and_shown_over_any_models_mask(client, app, monkeypatch, tmp_path):
    predictor, computed = app.models.predictors["gland"], []
    find = predictor.find_disagreement
    monkeypatch.setattr(predictor, "find_disagreement", lambda *a, **k: (computed.append(1), find(*a, **k))[1])
    where = {**VOLUME, "disagreement": True}
    plain, heat = (open_png(client.get("/iopfl/overlay.png", params=params)) for params in (VOLUME, where))
    assert plain.size == heat.size
    assert plain.tobytes() != heat.tobytes()
    open_png(client.get("/iopfl/overlay.png", params={**where, "model": "global", "slice": 1}))
    for form, name in (("regions", "scan-check-here.seg.nrrd"), ("percent", "scan-disagreement.nrrd")):
        file = client.get("/iopfl/disagreement", params={"task": "gland", "image": "scan", "form": form})
        assert f'filename="{name}"' in file.headers.get("content-disposition", file.text)
        (tmp_path / name).write_bytes(file.content)
        values, header = nrrd.read(str(tmp_path / name))
        assert values.shape == (24, 30, 5)
        assert np.abs(np.diag(header["space directions"])).tolist() == [1.0, 0.5, 3.0]
        assert (header.get("Segment0_Name") == "check here") == (form == "regions")
    assert computed == [1]


def test_a_bank_of_one_model_has_nothing_to_disagree_and_says_so(client, app, tmp_path):
    app.models.predictors["gland"] = Predictor(make_bank(tmp_path, GLAND, ()))
    refused = client.get("/iopfl/disagreement", params={"task": "gland", "image": "scan"})
    assert refused.status_code == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "has one model, global: a map of disagreement takes a bank of several" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("changed", "status", "message"),
    [
        ({"task": "liver"}, 404, "no task 'liver'"),
        ({"image": "eye9"}, 404, "no image 'eye9'"),
        ({"image": "../labels/final/eye1"}, 404, "no image"),
        ({"image": "/etc/passwd"}, 404, "no image"),
        ({"image": "eye1.png"}, 404, "no image"),
        ({"model": "best"}, 400, "expected one of routed, site, global, average"),
        ({"image": "broken"}, 422, "cannot be read as an image"),
    ],
)
@pytest.mark.parametrize("route", [ANSWER, "/iopfl/overlay.png"])
def test_what_does_not_exist_is_refused_by_name(client, route, changed, status, message):
    refused = client.get(route, params={**PICTURE, **changed})
    assert refused.status_code == status
    assert message in refused.json()["detail"]


def test_only_the_data_asks_who_reads_it():
    """The page itself holds nothing of a patient; with MONAI Label's sign-in on, its routes ask for a user."""
    assert all(route.dependant.dependencies for route in routes.data.routes)
    assert not any(route.dependant.dependencies for route in routes.pages.routes)


def test_patients_images_stay_out_of_caches(client):
    for route in ("/iopfl/status", "/iopfl/images"):
        assert client.get(route).headers["cache-control"] == "no-store"
    assert client.get("/iopfl/overlay.png", params=PICTURE).headers["cache-control"] == "no-store"


def test_figures_that_are_undefined_become_null(client, app, monkeypatch):
    describe = app.models.describe
    broken = {"choice": {"kind": "global", "reason": "", "metrics": {"global": float("nan")}}}
    monkeypatch.setattr(app.models, "describe", lambda name: describe(name) | broken)
    assert client.get("/iopfl/status").json()["tasks"][0]["choice"]["metrics"] == {"global": None}


def test_models_of_a_site_outside_the_bank(client, app):
    bank = app.models.predictors["fundus"].bank
    app.models.predictors["fundus"] = Predictor(bank, site=None, task=replace(bank.task, description="own"))
    answer = client.get(ANSWER, params={**PICTURE, "model": "site"}).json()
    assert answer["params"]["model"] == "global"
    assert "no model of this site's own" in answer["params"]["reason"]


def test_sizes_of_all_labels_are_a_table_without_formulas(client, app, site_folder, tmp_path, monkeypatch):
    shutil.copytree(site_folder, tmp_path / "site")
    for folder in (tmp_path / "site", tmp_path / "site" / "labels" / "final"):
        (folder / "scan.nii.gz").rename(folder / "=2+5.nii.gz")
    (tmp_path / "site" / "labels" / "final" / "eye2.png").write_bytes(b"no label")
    suffixes = [f"*{suffix}" for suffix in IMAGE_SUFFIXES]
    about = {"tasks": app.models.tasks, "labels": tmp_path / "versions", "rule": FinalRule()}
    store = VersionedDatastore(str(tmp_path / "site"), extensions=suffixes, **about)
    store.answers.note({"client_id": "ann", "image": "=2+5"}, {"model": "routed", "bank": "7-ab", "quality": 0.8125})
    store.submit("=2+5", site_folder / "labels" / "final" / "scan.nii.gz", {"client_id": "ann"})
    monkeypatch.setattr(app, "datastore", lambda: store)
    table = client.get("/iopfl/sizes.csv")
    assert table.headers["content-type"].startswith("text/csv")
    assert table.headers["cache-control"] == "no-store"
    rows = list(csv.DictReader(io.StringIO(table.text)))
    scan = next(row for row in rows if row["task"] == "gland")
    assert (scan["image"], scan["label"], scan["version"], scan["problem"]) == ("'=2+5", "gland", "2", "")
    assert (scan["model"], scan["bank"], scan["quality"]) == ("routed", "7-ab", "0.8125")
    assert float(scan["volume_ml"]) == pytest.approx(8 * 10 * 1.5 / 1000, abs=1e-4)
    assert scan["date"] == store.history("=2+5").versions[-1].when and scan["pixels"] == ""
    rim, cup = (row for row in rows if row["image"] == "eye1")
    assert (rim["label"], rim["pixels"], cup["pixels"], rim["volume_ml"]) == ("rim", "600", "0", "")
    broken = [row for row in rows if row["image"] == "eye2"]
    assert broken and all("eye2.png" in row["problem"] and row["label"] == "" for row in broken)
    of_task = client.get("/iopfl/sizes.csv", params={"task": "gland"}).text
    assert [row for row in csv.DictReader(io.StringIO(of_task)) if row["label"]] == [scan]
    assert client.get("/iopfl/sizes.csv", params={"task": "liver"}).status_code == HTTPStatus.NOT_FOUND


def test_tables_of_sizes_that_are_asked_for_at_once_wait_their_turn(client, monkeypatch):
    """Each reads all labels: any number at once took all threads, and the memory of as many volumes."""
    begun, go = threading.Semaphore(0), threading.Event()

    def hold(*about):
        begun.release()
        assert go.wait(30)
        return []

    monkeypatch.setattr(size_routes, "_rows", hold)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.get, "/iopfl/sizes.csv") for _ in range(2)]
        for _ in asked:
            assert begun.acquire(timeout=30)
        refused = client.get("/iopfl/sizes.csv")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "again in a moment" in refused.json()["detail"]
        assert client.get("/iopfl/sizes.csv", params={"task": "liver"}).status_code == 404
        go.set()
        assert [one.result(30).status_code for one in asked] == [200, 200]
    for _ in range(3):
        assert client.get("/iopfl/sizes.csv").status_code == 200


def test_who_leaves_before_the_table_of_sizes_begins_keeps_nobody_waiting(client, monkeypatch):
    monkeypatch.setattr(size_routes, "_rows", lambda *about: [])

    async def leave(message):
        raise ConnectionResetError

    async def receive():
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/iopfl/sizes.csv", "query_string": b"", "headers": []}
    with ThreadPoolExecutor(1) as other:  # Playwright leaves a running loop in this one
        for _ in range(3):
            left = other.submit(lambda: asyncio.run(client.app({**scope}, receive, leave))).exception(30)
            assert left is not None
    assert client.get("/iopfl/sizes.csv").status_code == 200
