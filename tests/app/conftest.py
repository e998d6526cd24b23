"""One server for several modules, started once more after another was stopped in a training."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from iopfl.core.bank import ModelBank
from label_server import LabelServer

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
