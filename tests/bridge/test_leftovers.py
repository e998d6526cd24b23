"""What killed processes left in a kit is gone after its next start; what is in use, and what is the site's, stays."""

from __future__ import annotations

import os
import signal
import tempfile
import uuid
from pathlib import Path

import pytest
import torch

from fl_bridge import processes
from fl_bridge.cli import main
from fl_bridge.federation_file import read_federation
from fl_bridge.provision import provision
from iopfl.base.files import Scratch, beside, replacing
from iopfl.core.weights import write_weights

FEDERATION = """
name: retina
task: vessel
server: {host: localhost}
rounds: 3
sites: {north: {share_personalized: true}, south: {share_personalized: false}}
"""


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("left")
    (folder / "federation.yaml").write_text(FEDERATION)
    provision(read_federation(folder / "federation.yaml"), folder / "kits")
    return folder / "kits"


@pytest.fixture
def start(monkeypatch):
    """Start a kit whose process of FLARE's ends at once; gives its environment."""
    started = []

    class Ended:
        pid = 2**22

        def __init__(self, command, env, **options):
            started.append(env)

        def wait(self, timeout=None):
            return 0

        def send_signal(self, number):
            pass

    monkeypatch.setattr(processes.subprocess, "Popen", Ended)
    return lambda kit: (main([("server" if kit.name == "server" else "site"), str(kit)]), started[-1])


def leave(*begun):
    """Begin to write, each of (how, path), in a process that is killed."""
    process = os.fork()
    if not process:
        try:
            contexts = [how(path) for how, path in begun]
            for path in [context.__enter__() for context in contexts]:
                (path / "half" if path.is_dir() else path).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def contents(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["server", "north"])
def test_what_was_being_written_when_it_was_killed_is_swept(kits, name, start):
    kit = kits / name
    assert start(kit)[0] == 0
    write_weights(kit / "state" / "updates" / "a.safetensors", {"weight": torch.ones(1)}, {})
    before = contents(kit)
    written = [
        kit / "federation.json", kit / "local" / "site.yaml", kit / "local" / "shares" / "ledger.json",
        kit / "state" / "global-000001.safetensors", kit / "state" / "updates" / "b.safetensors", kit / "bank" / "x",
    ]  # fmt: skip
    leave(*((replacing, path) for path in written), (Scratch, kit / "job"), (beside, kit / "tmp" / "weights"))
    (kit / "tmp" / "of FLARE's own").mkdir()
    assert len(contents(kit) - before) > len(written)
    with replacing(kit / "local" / "other.json") as held:
        held.write_bytes(b"by somebody who is there")
        status, environment = start(kit)
        assert status == 0 and environment["TMPDIR"] == str(kit / "tmp")
        assert held.is_file()
    (kit / "local" / "other.json").unlink()
    assert {path for path in contents(kit) - before if path not in ("bank", "local/shares")} == set()
    assert before <= contents(kit)


def test_the_folders_of_the_last_jobs_stay_and_older_ones_go(kits, start):
    kit = kits / "south"
    jobs = [kit / str(uuid.uuid4()) for _ in range(13)]
    for age, job in enumerate(jobs):
        (job / "app").mkdir(parents=True)
        (job / "log.txt").write_text("why a round failed")
        os.utime(job, (1e9 - age, 1e9 - age))
    (kit / "notes").mkdir()
    assert start(kit)[0] == 0
    assert [job for job in jobs if job.exists()] == jobs[:10]
    assert (kit / "notes").is_dir() and (kit / "local" / "site.yaml").is_file()


def test_a_simulation_sweeps_what_an_earlier_one_left(tmp_path, monkeypatch):
    from fl_bridge import simulate
    from iopfl.base.errors import ConfigError

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    state = tmp_path / "bank.state"
    leave(
        (replacing, state / "federation.json"),
        (replacing, state / "sites" / "north-1" / "disk-1" / "local.safetensors"),
        (Scratch, Path(tempfile.gettempdir(), "fl-bridge")),
    )
    assert len([*tmp_path.rglob(".*")]) == 3
    with pytest.raises(ConfigError, match="expected the state"):
        simulate.run_federation(state, {}, rounds=1, bank=tmp_path / "bank", keys=tmp_path / "keys")
    assert not list(tmp_path.rglob(".*"))
