"""What an app is made of works under these versions, in this process, without network."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from iopfl import compat
from iopfl.base.errors import SeriesError
from label_server import write_volume

pytestmark = pytest.mark.usefixtures("tasks")


def test_applying_twice_changes_nothing():
    from monailabel.interfaces.app import MONAILabelApp

    infer = MONAILabelApp.infer
    compat.apply_tasks()
    assert MONAILabelApp.infer is infer


def test_pydicom_seg_imports_beside_pydicom_3():
    from monailabel.datastore.utils import convert

    assert convert.pydicom_seg.MultiClassWriter


def test_nothing_is_downloaded_at_start(monkeypatch):
    from monailabel.interfaces import app

    monkeypatch.setattr(app, "download_and_extract", lambda **_: pytest.fail("a download"))
    monkeypatch.setattr(app.shutil, "which", lambda _: None)
    app.MONAILabelApp._download_dcmqi_tools(SimpleNamespace(app_dir=os.devnull + "x"))


@pytest.mark.parametrize(("uri", "tracking"), [("", "None"), ("sqlite:///runs.db", "mlflow")])
def test_training_is_tracked_only_where_asked(tmp_path, monkeypatch, uri, tracking):
    from monailabel.tasks.train.basic_train import BasicTrainTask

    monkeypatch.setattr(BasicTrainTask, "__abstractmethods__", frozenset())
    task = BasicTrainTask(str(tmp_path), tracking_uri=uri)
    assert task.config()["tracking"][0] == tracking


@pytest.mark.parametrize("text", ['{"epoch": 1, "best', "", "[]", '{"best_metric": NaN, "a": [Infinity]}'])
def test_statistics_are_read_finite_or_not_at_all(tmp_path, monkeypatch, text):
    from monailabel.tasks.train.basic_train import BasicTrainTask

    monkeypatch.setattr(BasicTrainTask, "__abstractmethods__", frozenset())
    path = tmp_path / "train_stats.json"
    path.write_text(text)
    stats = BasicTrainTask(str(tmp_path), stats_path=str(path)).stats()
    assert stats in ({}, {"best_metric": 0.0, "a": [None]})


def test_statistics_are_written_finite_and_whole(tmp_path, monkeypatch):
    from monailabel.tasks.train import handler

    state = SimpleNamespace(
        epoch=1, max_epochs=1, best_metric=math.nan, metrics={}, key_metric_name=None, best_metric_epoch=-1
    )
    trainer = SimpleNamespace(state=state, get_stats=lambda: {"loss": math.inf})
    published = tmp_path / "train_stats.json"
    published.write_text("{}")
    before = published.stat().st_ino
    handler.PublishStatsAndModel(
        str(published), None, "model.pt", time.time(), "run", str(tmp_path), trainer, None
    ).iteration_completed()
    stats = json.loads(published.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (stats["best_metric"], stats["loss"]) == (0.0, None)
    assert published.stat().st_ino != before  # another file took its place


def batch(request, infer):
    from monailabel.interfaces.tasks.batch_infer import BatchInferTask

    store = SimpleNamespace(list_images=lambda: ["a", "b"])
    return BatchInferTask()({"max_workers": 1, **request}, store, infer)


def test_batch_inference_runs_without_a_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    seen = []
    batch({"multi_gpu": True, "device": "cuda"}, lambda request, _: seen.append(request["device"]) or {})
    assert seen == ["cpu", "cpu"]


def test_batch_inference_goes_on_after_a_bad_image():
    def infer(request, _):
        if request["image"] == "a":
            raise ValueError("broken header")
        return {"label": "b"}

    assert batch({}, infer) == {"a": {"error": "failed with ValueError"}, "b": {"label": "b"}}


def test_batch_inference_fails_when_every_image_does():
    with pytest.raises(SeriesError, match="every image failed, the first with: failed with KeyError"):
        batch({}, lambda request, _: {}["x"])


def store_with(folder, count: int):
    from iopfl.labels.folder import FolderDatastore

    for number in range(count):
        (folder / f"case{number}.nii.gz").write_bytes(b"")
    return FolderDatastore(folder, extensions=["*.nii.gz"])


class _App(SimpleNamespace):
    """As much of an app as inference needs."""

    def datastore(self):
        return self.store


def app_on(store, task):
    return _App(store=store, _infers={"m": task}, _infers_threadpool=None)


class _Echo:
    description = "returns the request"

    def __call__(self, request):
        return None, dict(request)


def test_an_id_is_never_taken_for_a_path(tmp_path, monkeypatch):
    from monailabel.interfaces.app import MONAILabelApp
    from monailabel.interfaces.exception import ImageNotFoundException

    (tmp_path / "images").mkdir()
    store = store_with(tmp_path / "images", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "case0").mkdir()  # what the server was started beside
    app = app_on(store, _Echo())
    result = MONAILabelApp.infer(app, {"model": "m", "image": "case0"})["params"]
    assert result["image"] == str(tmp_path / "images" / "case0.nii.gz")
    assert result["image_id"] == "case0"
    for unknown in ("images", ""):
        with pytest.raises(ImageNotFoundException):
            MONAILabelApp.infer(app, {"model": "m", "image": unknown})


def test_saved_results_are_labels_of_the_image(tmp_path):
    from monailabel.interfaces.app import MONAILabelApp

    class Writes(_Echo):
        def __call__(self, request):
            return str(write_volume(tmp_path / "out.nii.gz")), {"score": 1}

    (tmp_path / "images").mkdir()
    store = store_with(tmp_path / "images", 1)
    request = {"model": "m", "image": "case0", "save_label": True, "label_tag": "original"}
    assert MONAILabelApp.infer(app_on(store, Writes()), request)["label"] == "case0"
    assert store.get_label_info("case0", "original")["params"] == {"score": 1}


def test_folders_that_are_no_sessions_do_not_stop_the_start(tmp_path):
    from monailabel.utils.sessions import Sessions

    from iopfl.compat import stale_sessions

    stale_sessions.apply()
    (tmp_path / "broken").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "meta.info").write_text("{")
    assert Sessions(str(tmp_path)).remove_expired() == 2


def test_scoring_is_queued_once(monkeypatch):
    from monailabel.interfaces.app import MONAILabelApp
    from monailabel.utils.async_tasks import utils
    from monailabel.utils.async_tasks.task import AsyncTask

    from iopfl.compat import auto_scoring

    auto_scoring.apply()
    queue = []
    monkeypatch.setattr(utils, "background_tasks", {"scoring": queue})
    monkeypatch.setattr(AsyncTask, "run", lambda *_, **__: (queue.append({"status": "SUBMITTED"}), None))
    app = SimpleNamespace(_scoring_methods={"dice": None}, _server_mode=True)
    for _ in range(3):
        MONAILabelApp.async_scoring(app, None)
    assert len(queue) == 1


CHILD = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import time
from iopfl.compat import orphaned_child
orphaned_child.apply()
print("ready", flush=True)
time.sleep(60)
'''], env={**os.environ, "IOPFL_CHILD_OF": str(os.getpid())})
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_ends_with_a_killed_server():
    psutil = pytest.importorskip("psutil")
    parent = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
    assert "ready" in lines
    child = psutil.Process(int((lines - {"ready"}).pop()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        child.wait(5)
    except psutil.TimeoutExpired:
        child.kill()
        pytest.fail("the child lived on")
