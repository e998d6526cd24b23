"""Commands that compute nothing answer before torch is imported, and so do mistakes in those that compute."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from iopfl.base.locks import try_hold
from iopfl.core.bank.manifest import Manifest, serve_manifest
from iopfl.core.bank.signing import Keyring
from iopfl.core.task import read_task
from label_server import PACKAGES

HEAVY = ["torch", "monai", "monailabel", "highdicom", "matplotlib", "nibabel", "scipy", "fastapi", "nvflare"]

PROGRAM = """
import contextlib, io, json, sys
heavy, command, lines = json.loads(sys.argv[1])
if command == "iopfl":
    from iopfl.cli import main
else:
    from fl_bridge.cli import main
for words, expected in lines:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(words)
        except SystemExit as stopped:
            status = stopped.code or 0
    assert status == expected, (words, status, said.getvalue())
    found = sorted(set(heavy) & set(sys.modules))
    assert not found, f"{command} {' '.join(words)} imports {found}"
"""


def run(command: str, lines: list[tuple[list[str], int]], heavy: list[str]) -> None:
    """Run commands one after another in one fresh process, and look at what it imported after each."""
    words = [sys.executable, "-c", PROGRAM, json.dumps([heavy, command, lines])]
    with tempfile.TemporaryDirectory() as home:
        environment = {"PYTHONPATH": f"{PACKAGES}:{PACKAGES.parent}", "HOME": home}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_iopfl_imports_nothing_heavy_to_answer_what_needs_no_computing(tmp_path):
    state, keys, bank = (str(tmp_path / name) for name in ("state", "keys", "bank"))
    other = Keyring(tmp_path / "other").public_key
    made = str(tmp_path / "made")
    serve_manifest(Path(made), Manifest(1, "", "vessel-1", read_task("vessel"), ()))
    lines = [
        (["--version"], 0),
        (["--help"], 0),
        (["serve", "--help"], 0),
        (["segment", "--help"], 0),
        (["users", "add", "reader", "--role", "annotator", "--no-password", "--state", state], 0),
        (["users", "list", "--state", state], 0),
        (["users", "token", "reader", "--state", state], 0),
        (["users", "remove", "reader", "--state", state], 0),
        (["audit", "show", "--state", state], 0),
        (["audit", "verify", "--state", state], 0),
        (["bank", "key", "--keys", keys], 0),
        (["bank", "trust", other, "--keys", keys], 0),
        (["bank", "show", bank], 2),
        (["bank", "prune", made], 0),
        (["bank", "prune", bank], 2),
        (["bank", "verify", bank], 2),
        (["bank", "rollback", bank, "1"], 2),
        (["bank", "diff", bank, bank], 2),
        (["bank", "export", bank, str(tmp_path / "b.iopfl")], 2),
        (["serve", "--studies", str(tmp_path), "--bank", bank, "--keys", keys], 2),
        (["segment", "image.png", "--bank", bank], 2),
        (["evaluate", "--studies", str(tmp_path), "--bank", bank], 2),
    ]
    run("iopfl", lines, HEAVY)


def test_dicom_commands_import_no_more_than_dicom(tmp_path):
    state = str(tmp_path / "state")
    lines = [
        (["dicom", "listen", "--help"], 0),
        (["dicom", "queue", "--state", state], 0),
        (["dicom", "echo", "127.0.0.1", "1"], 2),
        (["dicom", "rules", "check", str(tmp_path / "none.yaml")], 2),
    ]
    run("iopfl", lines, [name for name in HEAVY if name not in ("nibabel", "scipy")])


FEDERATION = """
name: retina
task: vessel
server: {host: localhost}
rounds: 3
sites: {DRIVE: {share_personalized: true}, STARE: {share_personalized: false}}
"""


def test_fl_bridge_imports_nothing_heavy_for_what_is_not_a_round(tmp_path):
    from fl_bridge.federation_file import read_federation
    from fl_bridge.persistor import FederationState
    from fl_bridge.provision import provision

    file = tmp_path / "federation.yaml"
    file.write_text(FEDERATION)
    provision(read_federation(file), tmp_path / "kits")
    server, site = (str(tmp_path / "kits" / name) for name in ("server", "DRIVE"))
    nothing, begun = str(tmp_path), tmp_path / "kits" / "server" / "state"
    helps = ("simulate", "provision", "server", "site", "update", "run", "stop", "status")
    lines = [
        *(([command, "--help"], 0) for command in helps),
        (["--help"], 0),
        *(([command, nothing], 2) for command in ("server", "site", "update", "run", "stop", "status")),
        (["provision", str(tmp_path / "none.yaml"), "-o", str(tmp_path / "other")], 2),
        (["simulate", "--data", nothing, "--task", "none", "--rounds", "1", "--out", str(tmp_path / "bank")], 2),
        (["update", server], 0),
        (["update", site], 0),
        (["status", server], 2),
        (["stop", server], 2),
    ]
    run("fl-bridge", lines, HEAVY)
    begun.mkdir()
    FederationState.create(begun, task=read_task("vessel"), clients={"DRIVE": "DRIVE", "STARE": "STARE"}, seed=0)
    with try_hold(tmp_path / "kits" / "server" / "supervisor.lock"):
        run("fl-bridge", [(["status", server], 0), (["status", server, "--json"], 0), (["stop", server], 0)], HEAVY)
