"""Stops, restarts, the other way to start, and the pages in a real browser."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys

import pytest
import requests

from iopfl.core.weights import read_weights
from label_server import LabelServer, start_process, stop_process, wait_until

from .site import APP, conf_of, read_answer

IMAGE = "case06"
BROWSER_SECONDS = 60


def ask(server: LabelServer, model: str = "gland") -> dict:
    return read_answer(server.post(f"/infer/{model}?image={IMAGE}&output=json"))


@pytest.fixture
def open_page(home):
    """Return a page once its scripts have run in Chromium, for which no address but this machine's exists."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium: the pages were not opened")

    def open_page(address: str) -> str:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--virtual-time-budget=20000", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        flags += [f"--user-data-dir={home / 'chromium'}", "--dump-dom"]
        done = subprocess.run([chromium, *flags, address], capture_output=True, text=True, timeout=BROWSER_SECONDS)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return open_page


def test_a_server_stopped_in_a_training_starts_again_with_the_published_model(restarted, home, bank):
    weights, metrics = read_weights(home / "state" / "local" / "gland.safetensors")
    assert weights.keys() == bank.experts[0].keys()
    assert ask(restarted)["metrics"]["local"] == pytest.approx(float(metrics["local"]), abs=1e-3)
    assert restarted.get("/info/").json()["train_stats"]["gland"]["epoch"] >= 3
    [own] = (home / "state" / "tmp").iterdir()  # the server that was stopped has left nothing
    assert own.name.startswith(".iopfl"), "a kill would leave what is written there"


def test_the_start_page_shows_a_routed_result(restarted, open_page):
    page = open_page(f"{restarted.url}/?image={IMAGE}&model=routed")
    assert re.search(r'<div id="problem"[^>]*hidden', page), re.findall(r'id="problem".{200}', page)
    assert len(re.findall(r'src="blob:', page)) >= 2, "no picture of the mask"
    knowledge = re.search(r'<section[^>]*id="knowledge".*?</section>', page, re.DOTALL)[0]
    assert all(name in knowledge for name in ("global", "site_a", "site_b")), "no shares of the experts"
    assert re.search(r"\d+\.\d\s*%", knowledge)


def test_ohif_runs_from_the_servers_own_files(restarted, open_page):
    source = restarted.get("/ohif/").text
    scripts = re.findall(r'<script[^>]*src="([^"]+)"', source)
    assert scripts
    for script in scripts:
        found = restarted.get(script if script.startswith("/") else f"/ohif/{script}")
        assert found.ok and "javascript" in found.headers["content-type"], script
    page = open_page(f"{restarted.url}/ohif/")
    assert re.search(r'id="root"[^>]*>\s*<', page), "its scripts did not run"
    assert page.count("<div") > source.count("<div") + 5


def test_monailabels_own_command_serves_the_app(home, bank):
    """In a folder with the app's `main.py` alone: MONAI Label makes model/, logs/ and bin/ there."""
    app = home / "iopfl"
    app.mkdir()
    shutil.copy(APP / "main.py", app)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--uvicorn_app", "iopfl.server:app"]
    command += ["--app", app, "--studies", home / "site_a", "--host", "127.0.0.1", "--port", port]
    for key, value in {**conf_of(bank), "state": home / "stock_state"}.items():
        command += ["--conf", key, value]
    log = home / "stock.log"
    process = start_process([str(word) for word in command], log)
    url = f"http://127.0.0.1:{port}"

    def info() -> dict | None:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            return requests.get(f"{url}/info/", timeout=5).json()
        except requests.ConnectionError:
            return None

    try:
        assert set(wait_until(info, 90, what="the server")["models"]) == {"gland", "gland_routed"}
        server = LabelServer(url, process.pid, log)
        assert ask(server, "gland_routed")["model"] == "routed"
        assert ask(server)["model"] == "personalized"
        assert "iopfl" in server.get("/").text and server.get("/iopfl/status").json()["site"] == "site_a"
    finally:
        stop_process(process)
