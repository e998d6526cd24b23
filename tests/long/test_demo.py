"""The demo on a clone of what is committed; what it leaves, and that it leaves nothing running."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import psutil
import pytest

from iopfl.core.bank.bank import ModelBank

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = REPOSITORY / ".venv"
DEMO_SECONDS = 1800
INSTALL_SECONDS = 3600

pytestmark = pytest.mark.long


@pytest.fixture
def clone(tmp_path) -> Path:
    """A bare clone of HEAD."""
    folder = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(folder)], check=True, timeout=120)
    return folder


def run(clone: Path, *command: object, seconds: float) -> str:
    """Run a command in the clone with a home of its own; the clone's packages come before installed ones."""
    path = os.pathsep.join([str(clone / "apps"), str(clone)])
    environment = {**os.environ, "HOME": str(clone.parent / "home"), "PYTHONPATH": path}
    environment.pop("XDG_CONFIG_HOME", None)
    done = subprocess.run(
        [str(word) for word in command], cwd=clone, env=environment, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def check_demo(clone: Path, output: str) -> None:
    table = re.findall(r"^(\S+) +(global|local|personalized|average|published|routed) +\d+ +(\d\.\d{3})", output, re.M)
    inside = {site for site, kind, _ in table if kind == "personalized"}
    assert len(inside) == 3, output
    assert {kind for site, kind, _ in table if site == "site_d"} == {"global", "average", "published", "routed"}
    assert all(0 <= float(dice) <= 1 for *_, dice in table)
    work = next((clone / "demo").glob("*site_d"))
    bank = ModelBank.open(work / "bank")
    assert bank.names == ["global", *sorted(inside)]
    report = (work / "report.html").read_text(encoding="utf-8")
    assert "site_d" in report and "<script src=" not in report
    assert "prostate" in output.splitlines()[-2] or "label server at http://127.0.0.1:" in output
    assert not processes_of(clone)
    status = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True).stdout
    assert not [line for line in status.splitlines() if not line.endswith(".venv")], status


def processes_of(folder: Path) -> list[str]:
    """Command lines of programs that run in a folder or name it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and (
                str(folder) in " ".join(process.cmdline()) or process.cwd() == str(folder)
            ):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.mark.timeout(DEMO_SECONDS)
def test_the_demo_runs_in_a_clone(clone):
    """With the environment of this tree; setting one up is the other test's part."""
    if not list(ENVIRONMENT.glob(".ready-*")):
        pytest.skip("no environment: make env")
    (clone / ".venv").symlink_to(ENVIRONMENT)
    output = run(clone, ".venv/bin/python", "-m", "scripts.demo", "--once", "--rounds", 2, seconds=DEMO_SECONDS)
    check_demo(clone, output)


@pytest.mark.timeout(DEMO_SECONDS + INSTALL_SECONDS)
@pytest.mark.skipif(
    os.environ.get("IOPFL_TEST_INSTALL") != "1", reason="downloads 4 GB, installs 7: set IOPFL_TEST_INSTALL=1"
)
def test_the_demo_runs_from_nothing(clone):
    run(clone, "make", "env", seconds=INSTALL_SECONDS)
    output = run(clone, ".venv/bin/python", "-m", "scripts.demo", "--once", "--rounds", 2, seconds=DEMO_SECONDS)
    check_demo(clone, output)
