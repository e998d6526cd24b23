"""A full disk, and a label server that is killed: what was published stays whole."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.site import GLAND, await_line, make_site_bank, read_answer, serving, write_scans
from iopfl.core.bank.bank import ModelBank
from iopfl.core.bank.signing import Keyring
from iopfl.core.weights import read_weights

pytestmark = pytest.mark.long

COMMAND_SECONDS = 300
TASK = """\
name: gland
labels: {gland: 2}
spatial_dims: 2
slices: 3
size: [32, 32]
flips: [0, 1]
network:
  name: UNet
  args: {channels: [4, 8, 8], strides: [2, 2], norm: batch}
training: {local_steps: 2, batch_size: 2, min_labels: 3}
"""


def run_with_a_full_disk(program: str, *words: object, cwd: Path, limit: int) -> subprocess.CompletedProcess[str]:
    """Run one of our commands where no file may grow beyond `limit` bytes: a write fails as on a full disk."""

    def confine() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then write() fails with EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", program, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=cwd, env=environment, preexec_fn=confine, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bank_that_the_disk_does_not_take_leaves_the_one_before(tmp_path):
    bank = make_site_bank(tmp_path / "bank", GLAND, sites=("site_a",))
    newer = make_site_bank(tmp_path / "newer", GLAND)
    size = max(path.stat().st_size for path in newer.folder.glob("*.safetensors"))
    words = ("bank", "export", "newer", "newer.iopfl")
    assert run_with_a_full_disk("iopfl.cli", *words, cwd=tmp_path, limit=2**30).returncode == 0
    before = files_of(bank.folder)
    for words in (
        ("bank", "import", "newer.iopfl", "bank", "--keys", "keys"),
        ("bank", "export", "newer", "another.iopfl"),
    ):
        done = run_with_a_full_disk("iopfl.cli", *words, cwd=tmp_path, limit=size // 2)
        assert done.returncode == 2, done.stdout + done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert files_of(bank.folder) == before
    assert not (tmp_path / "another.iopfl").exists()
    assert ModelBank.open(bank.folder, keys=Keyring(tmp_path / "keys")).label == bank.label


def test_a_federation_on_a_full_disk_says_so_and_goes_on_later(tmp_path):
    (tmp_path / "task.yaml").write_text(TASK)
    for site in ("site_a", "site_b"):
        write_scans(tmp_path / "sites" / site, labeled=6, unlabeled=0)
    words = ("simulate", "--data", "sites", "--task", "task.yaml", "--rounds", 1, "--out", "bank", "--keys", "keys")
    # Enough for settings and logs of the start, too little for the weights of this network.
    done = run_with_a_full_disk("fl_bridge.cli", *words, cwd=tmp_path, limit=8 * 1024)
    assert done.returncode == 2, done.stdout + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bank" / "manifest.json").exists()
    again = run_with_a_full_disk("fl_bridge.cli", *words, cwd=tmp_path, limit=2**30)
    assert again.returncode == 0, again.stderr[-2000:]
    assert ModelBank.open(tmp_path / "bank", keys=Keyring(tmp_path / "keys")).names == ["global", "site_a", "site_b"]


def test_a_label_server_killed_in_a_training_starts_again_with_what_was_published(tmp_path):
    studies = write_scans(tmp_path / "site_a", labeled=6, unlabeled=2)
    bank = make_site_bank(tmp_path / "bank", GLAND)
    state = tmp_path / "state"
    for attempt in range(3):
        with serving(studies, bank, state=state) as server:
            if attempt:
                metrics = read_weights(state / "local" / "gland.safetensors")[1]
                params = read_answer(server.post("/infer/gland?image=case07&output=json"))
                assert params["metrics"]["local"] == pytest.approx(float(metrics["local"]), abs=1e-3)
            server.post("/train/gland", json={"epochs": 5000}).raise_for_status()
            await_line(server, f"epoch {2 + 3 * attempt}/5000")
            process = psutil.Process(server.pid)
            children = process.children(recursive=True)
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            assert not psutil.wait_procs(children, timeout=10)[1], "the training outlived its server"
    assert read_weights(state / "local" / "gland.safetensors")[0].keys() == bank.experts[0].keys()
    assert len(list((studies / "labels" / "final").glob("*.nii.gz"))) == 6
