"""What an app is made of works under these versions, in this process, without network."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from iopfl import compat
from iopfl.base.errors import SeriesError

pytestmark = pytest.mark.usefixtures("tasks")


def test_applying_twice_changes_nothing():
    from monailabel.tasks.train.basic_train import BasicTrainTask

    run = BasicTrainTask.__init__
    compat.apply_tasks()
    assert BasicTrainTask.__init__ is run


def test_pydicom_seg_imports_beside_pydicom_3():
    from monailabel.datastore.utils import convert

    assert convert.pydicom_seg.MultiClassWriter


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
