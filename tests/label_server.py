"""Start a real label server in a process of its own, on a free loopback port, and stop it by its id."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import requests

from runtime_list import runtime_environment

PACKAGES = Path(__file__).resolve().parents[1] / "apps"
START_SECONDS = 90.0
STOP_SECONDS = 20.0

MINIMAL_APP = Path(__file__).resolve().parent / "compat" / "minimal_app"
IMAGES = ("case0", "case1", "case2")
SHAPE = (12, 10, 6)


@dataclass(frozen=True)
class LabelServer:
    """A running server.

    Attributes:
        url: without a slash at its end.
        pid: process id, also of its process group.
        log_path: what it wrote to stdout and stderr.
    """

    url: str
    pid: int
    log_path: Path

    def request(self, method: str, path: str, **options) -> requests.Response:
        """Send a request, `path` starting with a slash."""
        return requests.request(method, self.url + path, timeout=60, **options)

    def get(self, path: str, **options) -> requests.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options) -> requests.Response:
        return self.request("POST", path, **options)


@contextmanager
def running_server(
    app_dir: Path,
    studies: Path | str,
    *,
    state: Path,
    conf: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "iopfl.server"),
) -> Iterator[LabelServer]:
    """Run `iopfl serve` for as long as the block lasts.

    Args:
        app_dir: the app's folder.
        studies: its datastore.
        state: its state folder; the log goes there too.
        conf: its `--conf`.
        args: more options of `iopfl serve`.
        env: more environment variables.
        command: what takes the options of `iopfl serve`.
    """
    options = ["--app", app_dir, "--studies", studies, "--state", state, "--port", 0]
    for key, value in (conf or {}).items():
        options += ["--conf", key, value]
    state.mkdir(parents=True, exist_ok=True)
    log_path = state / "terminal.log"
    process = start_process([*command, *map(str, options), *args], log_path, env=env)
    try:
        url = _wait_for_address(process, log_path)
        yield LabelServer(url, process.pid, log_path)
    finally:
        stop_process(process)


def start_process(command: Sequence[str], log_path: Path, *, env: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Start a program as a process group, with iopfl and what it is listed to need, and one thread for torch."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(PACKAGES)]))
    # A scoring process at each start would cost more than the rest of a test.
    defaults = {"OMP_NUM_THREADS": "1", "MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}
    environment = runtime_environment({**os.environ, **defaults, "PYTHONPATH": path, **(env or {})})
    with log_path.open("wb") as log:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def stop_process(process: subprocess.Popen) -> int:
    """Ask a process to end, wait, and kill its group if it does not. Returns its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def wait_until(condition, seconds: float, *, what: str):
    """Return the first true value of `condition()`.

    Raises:
        TimeoutError: there was none in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise TimeoutError(f"waited {seconds:.0f} s for: {what}")


def params(**values) -> dict[str, str]:
    """Make the form field in which MONAI Label's endpoints take JSON."""
    return {"params": json.dumps(values)}


def write_volume(path: Path, seed: int = 0, high: int = 200) -> Path:
    """Write a small volume, with 2 mm and 3 mm along its second and third axis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, high, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path


def make_studies(folder: Path) -> Path:
    """Write three images, two of them labeled."""
    for seed, name in enumerate(IMAGES):
        write_volume(folder / f"{name}.nii.gz", seed)
    for name in IMAGES[:2]:
        write_volume(folder / "labels" / "final" / f"{name}.nii.gz", high=2)
    return folder


def _wait_for_address(process: subprocess.Popen, log_path: Path) -> str:
    def address() -> str | None:
        text = log_path.read_text(errors="replace")
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{text[-4000:]}")
        found = re.search(r"^https?://\S+$", text, re.MULTILINE)
        return found[0] if found else None

    return wait_until(address, START_SECONDS, what=f"the server's address in {log_path}")
