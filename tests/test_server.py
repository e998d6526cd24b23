"""Both ways to start the label server, offline, and what it says when it cannot start."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
import requests

from iopfl import server
from iopfl.base.errors import ConfigError
from label_server import MINIMAL_APP, make_studies, running_server, start_process, stop_process, wait_until

# Runs first in the server and in its children, and writes down every address
# outside this machine that anybody wants to reach.
NO_NETWORK = """
import os, socket
connect = socket.socket.connect
def refuse(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        with open(os.environ["NETWORK_LOG"], "a") as log:
            log.write(repr(address) + "\\n")
        raise OSError("no network here")
    return connect(self, address)
socket.socket.connect = refuse
resolve = socket.getaddrinfo
def local(host, *args, **kwargs):
    if host not in (None, "127.0.0.1", "::1", "localhost"):
        with open(os.environ["NETWORK_LOG"], "a") as log:
            log.write(repr(host) + "\\n")
        raise OSError("no network here")
    return resolve(host, *args, **kwargs)
socket.getaddrinfo = local
"""


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """Environment without a network; returns the file that lists what was tried."""
    site = tmp_path / "site"
    site.mkdir()
    inherited = os.environ.get("PYTHONPATH", "")
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), inherited])))
    monkeypatch.setenv("NETWORK_LOG", str(tmp_path / "network.log"))
    return tmp_path / "network.log"


def test_serve_leaves_the_apps_folder_alone_and_needs_no_network(tmp_path, offline):
    app = shutil.copytree(MINIMAL_APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    studies = make_studies(tmp_path / "studies")
    before = sorted(app.rglob("*"))
    env = {"PYTHONDONTWRITEBYTECODE": "1"}
    with running_server(app, studies, state=tmp_path / "state", env=env) as running:
        assert running.url.startswith("http://127.0.0.1:")
        assert running.get("/info/").json()["name"] == "minimal"
        assert running.post("/infer/threshold?image=case0&output=json").ok
        os.kill(running.pid, signal.SIGINT)
        assert psutil.Process(running.pid).wait(15) == 0
    assert sorted(app.rglob("*")) == before
    assert (tmp_path / "state" / "logs" / "app.log").stat().st_size > 0
    assert not offline.exists(), offline.read_text()


def test_monailabel_start_server_serves_it_too(tmp_path, offline):
    app = shutil.copytree(MINIMAL_APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    studies = make_studies(tmp_path / "studies")
    port = free_port()
    program = [sys.executable, "-m", "monailabel.main", "start_server", "--uvicorn_app", "iopfl.server:app"]
    options = ["--app", app, "--studies", studies, "--host", "127.0.0.1", "--port", port]
    conf = ["--conf", "state", tmp_path / "state"]
    process = start_process([*program, *map(str, [*options, *conf])], tmp_path / "terminal.log")

    def info():
        assert process.poll() is None, (tmp_path / "terminal.log").read_text()
        try:
            return requests.get(f"http://127.0.0.1:{port}/info/", timeout=5)
        except requests.ConnectionError:
            return None

    try:
        assert wait_until(info, 90, what="the server").json()["name"] == "minimal"
        url = f"http://127.0.0.1:{port}"
        assert requests.post(f"{url}/infer/threshold?image=/etc/passwd", timeout=30).status_code == 400
        assert "App Init" in requests.get(f"{url}/logs/", timeout=30).text
    finally:
        stop_process(process)
    assert not offline.exists(), offline.read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_taken_port_is_said_plainly(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options = ["--studies", tmp_path, "--state", tmp_path, "--app", MINIMAL_APP, "--port", port]
        assert server.main([str(option) for option in options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"port {port} is taken") and "--port" in error


def test_answers_do_not_wait_for_acknowledgements():
    """Asyncio sets TCP_NODELAY on sockets of this protocol alone; without it each answer comes 40 ms late."""
    with server._listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_missing_folders_are_said_plainly(tmp_path):
    with pytest.raises(ConfigError, match="studies must be an existing folder"):
        server.serve(server.ServerSettings(studies=str(tmp_path / "none"), app_dir=MINIMAL_APP))
    with pytest.raises(ConfigError, match=r"holds main\.py"):
        server.serve(server.ServerSettings(studies=str(tmp_path), app_dir=tmp_path))


def test_importing_the_server_imports_no_monailabel():
    program = "import sys, iopfl.server; sys.exit('monailabel' in sys.modules)"
    process = start_process([sys.executable, "-c", program], Path(os.devnull))
    assert process.wait(30) == 0
