"""A whole federation on this machine: a FLARE server, and sites with a label server each, over mutual TLS."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fl_bridge.federation_file import client_name
from fl_bridge.persistor import FederationState
from fl_bridge.record import RECORD
from fl_bridge.server_kit import STATE
from iopfl.core.bank.signing import Keyring
from label_server import PACKAGES, LabelServer, running_server, start_process, stop_process, wait_until

BRIDGE = (sys.executable, "-m", "fl_bridge.cli")
PATH = os.pathsep.join([str(PACKAGES), str(PACKAGES.parent)])


@dataclass
class Production:
    """Its folder, and the processes that run."""

    folder: Path
    task: Path
    data: Path
    sites: tuple[str, ...]
    stack: ExitStack
    running: dict[str, subprocess.Popen] = field(default_factory=dict)
    servers: dict[str, LabelServer] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def server_kit(self) -> Path:
        return self.folder / "kits" / "server"

    @property
    def state(self) -> FederationState:
        return FederationState.open(self.server_kit / STATE)

    @property
    def rounds_done(self) -> int:
        """Rounds that count; 0 before the federation began."""
        return self.state.rounds_done if (self.server_kit / STATE / RECORD).is_file() else 0

    def provision(self, settings: Mapping[str, Any], sites: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Write federation.yaml, make the kits, and have every site trust the federation's banks."""
        policies = {}
        for site in self.sites:
            self.ports.setdefault(site, free_port())
            url = f"http://127.0.0.1:{self.ports[site]}"
            policies[site] = {"share_personalized": True, "label_server": url, **(sites or {}).get(site, {})}
        self.ports.setdefault("server", free_port())
        server = {"host": "localhost", "port": self.ports["server"]}
        values = {"name": "test", "task": str(self.task), "server": server, "sites": policies, **settings}
        (self.folder / "federation.yaml").write_text(yaml.safe_dump(values))
        bridge("provision", self.folder / "federation.yaml", "-o", self.folder / "kits")
        key = Keyring(self.server_kit / "keys").public_key
        for site in self.sites:
            Keyring(self.folder / site / "keys").trust(key)

    def start_label_server(self, site: str) -> LabelServer:
        """A site's label server, which has no bank yet."""
        home = self.folder / site
        conf = {"bank": home / "bank", "tasks": self.task, "site": site, "keys": home / "keys"}
        args = ["--port", str(self.ports[site])]
        started = running_server(PACKAGES / "iopfl", self.data / site, state=home / "state", conf=conf, args=args)
        self.servers[site] = self.stack.enter_context(started)
        return self.servers[site]

    def start(self, name: str, command: str = "site") -> subprocess.Popen:
        """`fl-bridge site|server|run` for a kit, as systemd would."""
        kit = self.server_kit if command in ("server", "run") else self.folder / "kits" / client_name(name)
        log = self.folder / f"{name}-{command}.log"
        process = start_process([*BRIDGE, command, str(kit)], log, env={"PYTHONPATH": PATH})
        self.stack.callback(stop_process, process)
        self.running[name if command != "run" else "run"] = process
        return process

    def start_all(self) -> None:
        self.start("server", "server")
        for site in self.sites:
            self.start_label_server(site)
            self.start(site)

    def run_to_the_end(self, seconds: float) -> FederationState:
        """Run the federation's rounds in a process of their own."""
        process = self.start("federation", "run")
        wait_until(lambda: process.poll() is not None, seconds, what="the federation's end")
        assert process.returncode == 0, self.log("federation-run")
        return self.state

    def await_training(self, site: str, round_index: int, seconds: float = 120.0) -> None:
        """Wait until a site is in the middle of a round."""
        task = yaml.safe_load(self.task.read_text())["name"]

        def trains() -> bool:
            try:
                states = self.servers[site].get(f"/iopfl/federations/{task}").json()["federations"]
            except OSError:
                return False
            found = [state for state in states if state["round"] == round_index + 1 and state["kind"] == "train"]
            return any(state.get("progress", {}).get("step") for state in found)

        wait_until(trains, seconds, what=f"{site} to train in round {round_index}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-6000:]

    def status(self) -> dict[str, Any]:
        return json.loads(bridge("status", self.server_kit, "--json"))


@contextmanager
def production(folder: Path, task: Path, data: Path, sites: tuple[str, ...]) -> Iterator[Production]:
    """A federation that is not provisioned yet; whatever it starts is stopped at the end."""
    with ExitStack() as stack:
        yield Production(folder, task, data, sites, stack)


def bridge(*arguments: object, status: int = 0) -> str:
    """Run `fl-bridge`; gives stdout, or stderr where another status than 0 is expected."""
    command = [*BRIDGE, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
