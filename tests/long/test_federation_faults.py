"""Kills in the middle of rounds: the federation reaches its last round with the weights of an undisturbed one."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from bridge.conftest import SITES, TASK, write_site
from bridge.production import Production, production
from fl_bridge.aggregation import aggregate, limit_weights
from fl_bridge.trainer import InProcessTrainer
from iopfl.core.bank.bank import ModelBank
from iopfl.core.networks import build_network
from iopfl.core.order import Order
from iopfl.core.task import read_task
from iopfl.core.weights import Weights, snapshot
from label_server import stop_process, wait_until

ROUNDS = 5
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture
def federation(tmp_path):
    """Three sites whose rounds take seconds."""
    for number, site in enumerate(SITES):
        write_site(tmp_path / "sites" / site, images=9, seed=number)
    task = yaml.safe_load(TASK)
    task["training"]["local_steps"] = 400
    (tmp_path / "disk.yaml").write_text(json.dumps(task))
    with production(tmp_path, tmp_path / "disk.yaml", tmp_path / "sites", SITES) as running:
        yield running


def compute_undisturbed(federation: Production) -> Weights:
    """The same rounds in a plain loop."""
    task = read_task(str(federation.task))
    weights = snapshot(build_network(task, seed=0))
    plain, sites = federation.folder / "plain", federation.data
    trainers = {site: InProcessTrainer(str(sites / site), str(federation.task), str(plain / site)) for site in SITES}
    for round_index in range(ROUNDS):
        order = Order("plain", round_index, str(round_index))
        updates = {site: trainers[site].train(weights, order) for site in SITES}
        # As the controller weighs: 400 steps make another model of another last bit.
        shares = limit_weights({site: update.samples for site, update in updates.items()}, limit=0.5)
        start = weights
        weights = aggregate(
            start, shares, lambda site, key, u=updates, w=start: u[site].weights[key] - w[key], how="weighted_average"
        )
    return weights


def kill_job_process(process) -> None:
    """Kill the process in which FLARE runs a site's part of the job."""
    family = psutil.Process(process.pid).children(recursive=True)
    jobs = [child for child in family if any("worker_process" in part for part in child.cmdline())]
    assert jobs, [child.cmdline() for child in family]
    jobs[0].kill()


def test_kills_in_the_middle_of_rounds_change_nothing(federation):
    federation.provision({"rounds": ROUNDS, "min_sites": 3, "round_timeout": 120, "grace": 60})
    federation.start_all()
    supervisor = federation.start("federation", "run")
    first, second, third = SITES

    federation.await_training(first, 0)
    psutil.Process(federation.servers[first].pid).kill()
    federation.start_label_server(first)

    federation.await_training(second, 1, 300)
    kill_job_process(federation.running[second])

    federation.await_training(third, 2, 300)
    federation.running[third].kill()
    federation.start(third)

    federation.await_training(first, 3, 400)
    federation.running["server"].kill()
    federation.start("server", "server")

    wait_until(lambda: supervisor.poll() is not None, 500, what="the federation's end")
    assert supervisor.returncode == 0, federation.log("federation-run")
    state = federation.state
    assert [entry["round_index"] for entry in state.rounds] == list(range(ROUNDS))
    for entry in state.rounds:
        assert {site: fate["status"] for site, fate in entry["sites"].items()} == dict.fromkeys(SITES, "averaged")
    found = state.read_global()
    for key, value in compute_undisturbed(federation).items():
        if value.is_floating_point():
            assert torch.equal(found[key], value), key
    assert ModelBank.open(federation.server_kit / "bank").names == ["global", *SITES]


def test_a_site_that_was_away_comes_back(federation):
    federation.provision({"rounds": 4, "rounds_per_job": 1, "min_sites": 2, "round_timeout": 120, "grace": 10})
    federation.start_all()
    supervisor = federation.start("federation", "run")
    away = SITES[2]
    wait_until(lambda: federation.rounds_done >= 1, 200, what="a round with all")
    stop_process(federation.running[away])
    wait_until(lambda: federation.rounds_done >= 3, 300, what="two rounds without one")
    federation.start(away)
    wait_until(lambda: supervisor.poll() is not None, 300, what="the federation's end")
    statuses = [entry["sites"][away]["status"] for entry in federation.state.rounds]
    assert statuses[0] == "averaged" and "silent" in statuses
    assert ModelBank.open(federation.server_kit / "bank").names == ["global", *SITES], "what it shared before is kept"


def test_a_site_of_another_federation_is_refused(federation, tmp_path):
    federation.provision({"rounds": 1, "min_sites": 3})
    strangers = Production(tmp_path / "strangers", federation.task, federation.data, SITES, federation.stack)
    strangers.folder.mkdir()
    strangers.ports.update(federation.ports)
    strangers.provision({"rounds": 1})
    federation.start("server", "server")
    federation.start("north")
    wait_until(lambda: "north@" in federation.log("server-server"), 60, what="a site of this federation")
    strangers.start("south")
    wait_until(lambda: "CERTIFICATE_VERIFY_FAILED" in strangers.log("south-site"), 60, what="the refusal")
    assert "south@" not in federation.log("server-server")


def test_a_full_disk_at_the_server_holds_the_federation_up_until_there_is_room(federation):
    federation.provision({"rounds": 2, "min_sites": 3, "round_timeout": 120})
    with small_disk(federation.server_kit / "state") as disk:
        filler = disk / "filler"
        with contextlib.suppress(OSError):  # room for the state and an update or two, not for three
            filler.write_bytes(bytes(shutil.disk_usage(disk).free - 120_000))
        federation.start_all()
        supervisor = federation.start("federation", "run")
        wait_until(lambda: "No space left" in federation.log("federation-run"), 300, what="word of the full disk")
        assert supervisor.poll() is None, "it waits for room"
        filler.unlink()
        wait_until(lambda: supervisor.poll() is not None, 400, what="the federation's end")
        assert supervisor.returncode == 0, federation.log("federation-run")
        assert [entry["round_index"] for entry in federation.state.rounds] == [0, 1]
        assert {fate["status"] for entry in federation.state.rounds for fate in entry["sites"].values()} == {"averaged"}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own in a folder, of few megabytes."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
