"""What is put right of MONAI Label's app: images are found by id alone, scoring is queued once, nothing is fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iopfl import compat
from label_server import write_volume

compat.apply_early()  # before MONAI Label is imported

from monailabel.interfaces import app as upstream  # noqa: E402
from monailabel.interfaces.exception import ImageNotFoundException  # noqa: E402
from monailabel.utils.async_tasks import utils  # noqa: E402
from monailabel.utils.async_tasks.task import AsyncTask  # noqa: E402

from iopfl.labels.folder import FolderDatastore  # noqa: E402
from iopfl.lib.base_app import BaseApp  # noqa: E402
from iopfl.lib.sessions import OwnedSessions  # noqa: E402


class Echo:
    """An infer task that answers with its request."""

    description = "returns the request"

    def __call__(self, request):
        return None, dict(request)


class App(BaseApp):
    """As much of an app as is asked here."""

    def __init__(self, folder: Path, task=None):
        self._infers, self._infers_threadpool = {"m": task or Echo()}, None
        self._scoring_methods, self._server_mode = {"dice": None}, True
        self.app_dir = os.devnull + "x"
        folder.mkdir()
        (folder / "case0.nii.gz").write_bytes(b"")
        self._store = FolderDatastore(folder, extensions=["*.nii.gz"])

    def datastore(self):
        return self._store


def test_an_id_is_never_taken_for_a_path(tmp_path, monkeypatch):
    app = App(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "case0").mkdir()  # what the server was started beside
    result = app.infer({"model": "m", "image": "case0"})["params"]
    assert result["image"] == str(tmp_path / "images" / "case0.nii.gz")
    assert result["image_id"] == "case0"
    for unknown in ("images", ""):
        with pytest.raises(ImageNotFoundException):
            app.infer({"model": "m", "image": unknown})


def test_saved_results_are_labels_of_the_image(tmp_path):
    class Writes(Echo):
        def __call__(self, request):
            return str(write_volume(tmp_path / "out.nii.gz")), {"score": 1}

    app = App(tmp_path / "images", Writes())
    request = {"model": "m", "image": "case0", "save_label": True, "label_tag": "original"}
    assert app.infer(request)["label"] == "case0"
    assert app.datastore().get_label_info("case0", "original")["params"] == {"score": 1}


def test_scoring_is_queued_once(tmp_path, monkeypatch):
    queue = []
    monkeypatch.setattr(utils, "background_tasks", {"scoring": queue})
    monkeypatch.setattr(AsyncTask, "run", lambda *_, **__: (queue.append({"status": "SUBMITTED"}), None))
    app = App(tmp_path / "images")
    for _ in range(3):
        app.async_scoring(None)
    assert len(queue) == 1


def test_nothing_is_downloaded_at_start(tmp_path, monkeypatch):
    monkeypatch.setattr(upstream, "download_and_extract", lambda **_: pytest.fail("a download"))
    monkeypatch.setattr(upstream.shutil, "which", lambda _: None)
    App(tmp_path / "images")._download_dcmqi_tools()


def test_folders_that_are_no_sessions_do_not_stop_the_start(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "meta.info").write_text("{")
    assert OwnedSessions(str(tmp_path)).remove_expired() == 2
