"""A user's own problem, never seen before: one YAML file, pictures of four sites, and commands only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.tiny import make_models
from iopfl.cli import main
from iopfl.core.bank.bank import save_bank
from iopfl.core.bank.signing import Keyring
from iopfl.core.task import read_task
from label_server import running_server

SITES = ("amber", "birch", "coral", "delta")
OUTSIDE = "delta"
SIZE = (56, 48)  # not the network's, and not square
TASK = """\
name: bolt
description: Hexagonal bolts seen from above
labels: {bolt: 255}
modality: OT
spatial_dims: 2
size: [32, 32]
intensity: percentile
flips: [0, 1]
subject: '^(part\\d+)_'
network:
  name: UNet
  args: {channels: [4, 8, 8], strides: [2, 2], norm: batch}
training: {local_steps: 6, batch_size: 4, learning_rate: 0.01, min_labels: 4, augment: false}
adaptation: {max_instances: 2, max_views: 2}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """`bolt.yaml` and `sites/`, as a user would bring them."""
    folder = tmp_path_factory.mktemp("bolts")
    (folder / "bolt.yaml").write_text(TASK)
    for number, site in enumerate(SITES):
        write_site(folder / "sites" / site, number)
    return folder


def write_site(folder: Path, number: int) -> None:
    """Two views of each of six parts; every site has its own lamp: brightness, contrast, shading and noise."""
    (folder / "labels" / "final").mkdir(parents=True)
    random = np.random.default_rng(number)
    x, y = np.mgrid[: SIZE[1], : SIZE[0]]
    for part in range(6):
        for view in range(2):
            down, right = x - random.uniform(18, 30), y - random.uniform(20, 36)
            reach = np.max([np.abs(down), np.abs(0.5 * down + 0.87 * right), np.abs(0.5 * down - 0.87 * right)], axis=0)
            bolt = reach < random.uniform(8, 13)
            image = 40 + 25 * number + (110 - 20 * number) * bolt + 0.4 * number * y
            image = image + random.normal(0, 4 + 3 * number, bolt.shape)
            name = f"part{part}_{view}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name)
            Image.fromarray(bolt.astype(np.uint8) * 255).save(folder / "labels" / "final" / name)


def check_serving(home: Path, bank: Path, keys: Path) -> None:
    """The outside site's server, started by its command, answers for one of its pictures."""
    studies = home / "sites" / OUTSIDE
    command = (sys.executable, "-m", "iopfl.cli", "serve", "--bank", str(bank), "--keys", str(keys))
    command += ("--task", str(home / "bolt.yaml"))
    app = Path(__file__).parents[1] / "apps" / "iopfl"
    with running_server(app, studies, state=home / "state", command=command) as server:
        info = server.get("/info/").json()
        assert set(info["models"]) == {"bolt", "bolt_routed"} and info["labels"] == ["bolt"]
        answer = server.post("/infer/bolt_routed?image=part0_0&output=image")
        assert answer.ok, answer.text
        (home / "answer.png").write_bytes(answer.content)
        mask = Image.open(home / "answer.png")
        assert mask.size == SIZE and set(np.unique(np.asarray(mask))) <= {0, 255}
        params = server.post("/infer/bolt_routed?image=part0_0&output=json").json()
        assert params.get("params", params)["task"] == "bolt"


def test_a_task_of_ones_own_is_evaluated_and_served(home, capsys):
    """The quick form: the bank is not trained."""
    task, keys, bank = read_task(home / "bolt.yaml"), home / "quick_keys", home / "quick_bank"
    save_bank(bank, make_models(task, SITES[:3]), task=task, federation="f", keys=Keyring(keys))
    for model in ("global", "routed"):
        words = ["evaluate", "--studies", home / "sites" / OUTSIDE, "--bank", bank, "--task", home / "bolt.yaml"]
        assert main([*map(str, words), "--keys", str(keys), "--model", model, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["site"], result["model"], result["unit"]) == (OUTSIDE, model, "pixels")
        assert 0 <= result["dice"] <= 1
        assert result["images"] == 4, "two of six parts test, in two views each"
    check_serving(home, bank, keys)


@pytest.mark.long
def test_from_pictures_to_a_served_federation_with_commands_only(home, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    folder = Path(sys.executable).parent

    def run(program: str, *words: object) -> dict:
        command = [str(folder / program), *map(str, words), "--json"]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    if not shutil.which("fl-bridge", path=str(folder)):
        pytest.skip("the commands are not installed: make env")
    federation = ("--data", "sites", "--task", "bolt.yaml", "--outside", OUTSIDE, "--keys", "keys")
    done = run("fl-bridge", "simulate", *federation, "--rounds", 2, "--out", "bank")
    assert done["rounds"] == 2 and sorted(done["inside"]) == list(SITES[:3])
    shown = run("iopfl", "bank", "show", "bank")
    assert [entry["site"] for entry in shown["entries"]] == ["", *SITES[:3]]
    for model in ("global", "routed"):
        result = run(
            "iopfl", "evaluate", "--studies", f"sites/{OUTSIDE}", "--bank", "bank", "--keys", "keys", "--model", model
        )
        assert result["dice"] > 0.2, result
    check_serving(home, home / "bank", home / "keys")
