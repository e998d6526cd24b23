"""A federation over mutual TLS in which one of three sites was changed: the others' rounds go on, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import psutil
import pytest

from bridge import hostile_peer
from bridge.conftest import SITES, TASK, write_site
from bridge.production import PATH, production
from iopfl.core.bank.bank import ModelBank
from label_server import start_process, stop_process, wait_until

HOSTILE = SITES[2]


def start_hostile(federation):
    """The changed side of a site."""
    kit = federation.folder / "kits" / HOSTILE
    hostile_peer.change_kit(kit)
    settings = ["secure_train=true", f"uid={HOSTILE}", "org=consortium", "config_folder=config"]
    module = "nvflare.private.fed.app.client.client_train"
    command = [sys.executable, "-m", "bridge.hostile_peer", module]
    command += ["-m", str(kit), "-s", "fed_client.json", "--set", *settings]
    env = {"PYTHONPATH": os.pathsep.join([PATH, str(Path(__file__).parents[1])])}
    process = start_process(command, federation.folder / f"{HOSTILE}-site.log", env=env)
    federation.stack.callback(stop_process, process)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_what_a_changed_site_answers_harms_nobody_elses_rounds(tmp_path):
    for number, site in enumerate(SITES):
        write_site(tmp_path / "sites" / site, images=9, seed=number)
    (tmp_path / "disk.yaml").write_text(TASK)
    rounds = len(hostile_peer.ATTACKS)
    with production(tmp_path, tmp_path / "disk.yaml", tmp_path / "sites", SITES) as federation:
        federation.provision({"rounds": rounds, "min_sites": 2, "round_timeout": 120, "grace": 15})
        federation.start("server", "server")
        for site in SITES[:2]:
            federation.start_label_server(site)
            federation.start(site)
        start_hostile(federation)
        supervisor, most = federation.start("federation", "run"), [0]

        def is_over():
            with contextlib.suppress(psutil.Error):
                family = psutil.Process(federation.running["server"].pid).children(recursive=True)
                most[0] = max([most[0], *(child.memory_info().rss for child in family)])
            return supervisor.poll() is not None

        wait_until(is_over, 900, what="the federation's end")
        assert supervisor.returncode == 0, federation.log("federation-run")
        fates = [entry["sites"] for entry in federation.state.rounds]
        for site in SITES[:2]:
            assert [fate[site]["status"] for fate in fates] == ["averaged"] * rounds
        assert {fate[HOSTILE]["status"] for fate in fates} <= {"silent", "refused"}, fates
        assert "NaN" in fates[2][HOSTILE]["reason"]
        log = (federation.folder / f"{HOSTILE}-site.log").read_text()
        said = "".join(path.read_text() for path in (federation.folder / "kits" / HOSTILE).glob("*/log.txt")) + log
        assert all(f"attack: {attack}" in said for attack in hostile_peer.ATTACKS)
        assert most[0] < hostile_peer.GIGABYTES * 2**30, "what it packed was not unpacked"
        assert set(SITES[:2]) < set(ModelBank.open(federation.server_kit / "bank").names)
