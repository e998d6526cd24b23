"""Training, batch inference and their processes, through the server's routes."""

from __future__ import annotations

import psutil
import pytest

from label_server import MINIMAL_APP, LabelServer, make_studies, running_server, wait_until

CHILD_SECONDS = 90.0
UNFINISHED = ("SUBMITTED", "RUNNING")


def finished(server: LabelServer, path: str) -> dict:
    """Wait for the last task of one kind, and return its record."""

    def record():
        task = server.get(path).json()
        return task if task["status"] not in UNFINISHED else None

    return wait_until(record, CHILD_SECONDS, what=f"{path} to finish")


def child_of(server: LabelServer) -> psutil.Process:
    return wait_until(lambda: psutil.Process(server.pid).children(), 10, what="a child process")[0]


@pytest.fixture(scope="module")
def done(server) -> dict[str, dict]:
    """The records of a training and a batch inference that ran side by side."""
    server.post("/train/one_weight", json={}).raise_for_status()
    server.post("/batch/infer/threshold", params={"images": "unlabeled"}).raise_for_status()
    return {path: finished(server, path) for path in ("/train/", "/batch/infer")}


def test_training_runs_with_the_defaults(server, done):
    assert done["/train/"]["status"] == "DONE", done["/train/"]["details"]
    assert server.get("/info/").json()["train_stats"]["one_weight"]["epoch"] == 1


def test_batch_inference_runs_with_the_defaults(server, done):
    assert done["/batch/infer"]["status"] == "DONE", done["/batch/infer"]["details"]
    # Another process saved it: this one must have noticed.
    assert server.get("/datastore/label/info?label=case2&tag=original").json()["model"] == "threshold"


def test_the_last_words_of_a_failed_task_are_shown_and_a_second_is_refused(server, done):
    assert server.post("/train/one_weight", json={"words": "out of luck"}).ok
    assert server.post("/train/one_weight", json={}).status_code == 429
    task = finished(server, "/train/")
    assert (task["status"], task["details"][-1]) == ("ERROR", "out of luck")


def test_delete_ends_the_training(server, done):
    assert server.post("/train/one_weight", json={"seconds": 600}).ok
    child = child_of(server)
    assert server.request("DELETE", "/train/").json()["status"] == "STOPPED"
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running()
    assert server.get("/train/").json()["status"] == "STOPPED"
    assert server.request("DELETE", "/train/").json() is None


def test_stopping_the_server_ends_its_trainings(tmp_path):
    studies = make_studies(tmp_path / "studies")
    with running_server(MINIMAL_APP, studies, state=tmp_path / "state") as server:
        assert server.post("/train/one_weight", json={"seconds": 600}).ok
        assert server.post("/train/one_weight?enqueue=true", json={"seconds": 600}).ok
        child = child_of(server)
        process = psutil.Process(server.pid)
        process.terminate()
        gone, _ = psutil.wait_procs([process, child], timeout=15)
        assert {p.pid for p in gone} == {process.pid, child.pid}
