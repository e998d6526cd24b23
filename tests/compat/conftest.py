"""One label server for all tests of this folder, on a datastore of small volumes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from label_server import MINIMAL_APP, LabelServer, make_studies, running_server  # beside this folder


@pytest.fixture(scope="session")
def studies(tmp_path_factory) -> Path:
    """The shared server's datastore."""
    return make_studies(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="session")
def state(tmp_path_factory) -> Path:
    """The shared server's state folder."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def server(studies, state) -> LabelServer:
    """The shared server."""
    (state / "tmp").mkdir()
    env = {"TMPDIR": str(state / "tmp")}
    with running_server(MINIMAL_APP, studies, state=state, env=env) as running:
        yield running


@pytest.fixture(scope="session")
def tasks() -> None:
    """Apply what every process with an app applies, to this one."""
    from iopfl import compat

    compat.apply_tasks()
