"""One server for several modules, started once more after another was stopped in a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from iopfl.core.bank.bank import ModelBank
from iopfl.core.task import Task
from label_server import LabelServer
from orthanc import Orthanc, running_orthanc

from .archive import TASK, Gateway, send
from .site import GLAND, await_line, make_site_bank, serving, write_scans


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A site with labels, and one file that is no volume; its server's state will be here too."""
    folder = tmp_path_factory.mktemp("home")
    write_scans(folder / "site_a", labeled=6, unlabeled=2)
    (folder / "site_a" / "broken.nii.gz").write_bytes(b"\x1f\x8b no volume")
    return folder


@pytest.fixture(scope="session")
def bank(home) -> ModelBank:
    """The site's bank."""
    return make_site_bank(home / "bank", GLAND)


@pytest.fixture(scope="session")
def restarted(home, bank) -> LabelServer:
    """A server in whose state folder another was stopped in the middle of a training."""
    state = home / "state"
    with serving(home / "site_a", bank, state=state) as server:
        server.post("/train/gland", json={"epochs": 5000}).raise_for_status()
        await_line(server, "epoch 3/5000")
        process = psutil.Process(server.pid)
        children = process.children(recursive=True)
        assert children
        process.terminate()
        assert process.wait(15) == 0
        assert not psutil.wait_procs(children, timeout=5)[1]
    assert not list((state / "local").glob(".*")), "a half-written file was left"
    with serving(home / "site_a", bank, state=state) as server:
        yield server


@pytest.fixture
def studies(tmp_path) -> Path:
    """A site folder of nine volumes, two of them labeled, of a process that may open it as a server does."""
    from iopfl.compat import apply_tasks

    apply_tasks()
    return write_scans(tmp_path / "site_a", labeled=2, unlabeled=7)


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory) -> Iterator[Orthanc]:
    """A PACS for several modules; `pacs` empties it for each test."""
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture
def pacs(orthanc, tmp_path) -> Orthanc:
    """The PACS with two series of different patients, and nothing else."""
    for study in orthanc.request("GET", "/studies").json():
        orthanc.request("DELETE", f"/studies/{study}")
    for number, name in enumerate(("first", "second")):
        send(orthanc, tmp_path, name, patient=f"P-{number}", seed=number)
    return orthanc


@pytest.fixture
def open_store(tmp_path) -> Callable:
    """Open a PACS as the datastore, as a server does."""
    from iopfl.compat import apply_tasks

    apply_tasks()
    from iopfl.labels.final_rule import FinalRule
    from iopfl.pacs.access import PACSAccess
    from iopfl.pacs.datastore import PACSDatastore

    def open_store(url: str, *, task: Task = TASK, rule: str = "newest", state: str = "state", **options):
        folder = tmp_path / state / "pacs" / "here"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"cache_bytes": 10**9, "filters": {}, "tasks": {task.name: task}, "rule": FinalRule.parse(rule)}
        return PACSDatastore(PACSAccess(url), folder, labels=tmp_path / state / "labels", **{**settings, **options})

    return open_store


@pytest.fixture
def gateway(pacs) -> Iterator[Gateway]:
    """Stands before the PACS."""
    gateway = Gateway(pacs.url)
    yield gateway
    gateway.server.shutdown()
    gateway.server.server_close()
