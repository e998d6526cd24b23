"""What a killed process leaves is removed at the next start, and what a living one writes is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .site import GLAND, conf_of, make_site_bank, write_scans

WRITER = """
import sys, time
from pathlib import Path
from iopfl.base.files import Scratch, create, replacing
home = Path(sys.argv[1])
upload, staging = Scratch(home / "tmp" / "iopfl-request"), Scratch(home / "bank")
(upload.path / "upload.nii.gz").write_bytes(b"half")
(staging.path / "manifest.json").write_bytes(b"half")
with (
    replacing(home / "state" / "leases.json"),
    replacing(home / "bank" / "manifest.json"),
    create(home / "state" / "labels" / "here" / "case08" / "7.nii.gz"),
    replacing(home / "site_a" / "labels" / "final" / "case08.nii.gz") as file,
):
    file.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)
"""
WRITTEN = 6


@contextmanager
def writing(home: Path) -> Iterator[subprocess.Popen]:
    """A process in the middle of writing all kinds of files."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, home], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def temporary(home: Path) -> list[Path]:
    return [path for path in home.rglob(".*") if ".iopfl-" in path.name]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    from iopfl.lib.settings import AppSettings

    write_scans(tmp_path / "site_a", labeled=1, unlabeled=1)
    bank = make_site_bank(tmp_path / "bank", GLAND)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    conf = {key: str(value) for key, value in conf_of(bank).items()}
    return AppSettings.from_conf({**conf, "state": str(tmp_path / "state")}, default_state=tmp_path)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path, settings, caplog):
    from iopfl.lib.leftovers import sweep_leftovers

    caplog.set_level("INFO")
    others = [tmp_path / "site_a" / ".notes.part", tmp_path / "state" / ".hidden"]
    with writing(tmp_path) as process:
        for path in others:
            path.write_bytes(b"somebody's")
        before = {path for path in tmp_path.rglob("*") if ".iopfl-" not in str(path.relative_to(tmp_path))}
        assert len(temporary(tmp_path)) == WRITTEN
        with writing(tmp_path):
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert sweep_leftovers(settings, tmp_path / "site_a") == WRITTEN
            assert len(temporary(tmp_path)) == WRITTEN, "another process is writing them"
        assert f"removed {WRITTEN} leftover" in caplog.text
    assert sweep_leftovers(settings, tmp_path / "site_a") == WRITTEN
    assert temporary(tmp_path) == [] and sweep_leftovers(settings, tmp_path / "site_a") == 0
    assert all(path.exists() for path in others)
    assert before <= set(tmp_path.rglob("*"))


TEMPORARY = """
import sys, tempfile, time
from iopfl.base.files import keep_temporary_apart
keep_temporary_apart()
with tempfile.NamedTemporaryFile(suffix=".nii.gz", delete=False) as file, tempfile.TemporaryDirectory():
    print(file.name, flush=True)
    time.sleep(600)
"""


def test_temporary_files_of_a_killed_process_are_removed_also_those_of_others_code(tmp_path, settings):
    """As `tempfile` makes them, wherever a mask, an archive or a label is on its way."""
    from iopfl.lib.leftovers import sweep_leftovers

    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen([sys.executable, "-c", TEMPORARY], stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            mask = Path(process.stdout.readline().strip())
            assert mask.is_file() and sweep_leftovers(settings, None) == 0 and mask.is_file()
        finally:
            process.kill()
            process.wait()
    assert mask.is_file() and sweep_leftovers(settings, None) == 1
    assert not list((tmp_path / "tmp").iterdir())
