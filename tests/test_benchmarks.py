"""The accuracy benchmark: no method outside gets a label, every method runs, and the comparison is a fair one."""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import outside
from comparing import Row, compare, judge_quality
from core.tiny import BALL, DISK, make_experts, make_volume
from outside.scene import Scene
from outside.upper_bound import train_and_predict

ROOT = Path(__file__).resolve().parents[1]
READ_LABELS = {"read_label", "labeled", "find_cases", "split_cases", "LabeledImages", "load_images", "Images"}
SMALL = """
base: vessel
size: [32, 32]
network: {name: BasicUNet, args: {features: [4, 4, 8, 8, 8, 4], norm: batch}}
training: {local_steps: 2, fine_tune_epochs: 1, min_labels: 2}
"""


def make_scene(task, count=3):
    return Scene(task, make_experts(task), [make_volume(task, depth=1, seed=seed) for seed in range(count)])


def test_a_scene_holds_no_label_and_no_path_to_one():
    assert {field.name for field in dataclasses.fields(Scene)} == {
        "task", "experts", "volumes", "batch_size", "seed", "device",
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "outside").glob("*.py")), ids=lambda path: path.stem)
def test_no_method_outside_imports_what_reads_labels(path):
    names = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
    }
    assert not names & READ_LABELS
    assert not any(name.startswith(("scoring", "federation")) for name in names)


@pytest.mark.parametrize("task", [DISK, BALL], ids=["disk", "ball"])
@pytest.mark.parametrize("name", [*outside.METHODS, *outside.PARTS])
def test_every_method_answers_every_volume_and_leaves_the_experts(name, task, monkeypatch):
    monkeypatch.setattr("iopfl.core.published.EPOCHS", 1)
    scene = make_scene(task)
    kept = [{key: value.clone() for key, value in expert.items()} for expert in scene.experts]
    answers = {**outside.METHODS, **outside.PARTS}[name](scene)
    assert len(answers.probabilities) == len(scene.volumes)
    for volume, given in zip(scene.volumes, answers.probabilities, strict=True):
        assert given.shape == (task.num_classes, *volume.shape[1:])
        torch.testing.assert_close(given.sum(0), torch.ones_like(given[0]), atol=1e-4, rtol=0)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(kept, scene.experts, strict=True) for key in a)


def test_the_upper_bound_turns_to_the_expert_that_made_the_labels(monkeypatch):
    monkeypatch.setattr("outside.upper_bound.EPOCHS", 20)
    scene, trained = make_scene(DISK), []
    monkeypatch.setattr("outside.upper_bound.predict_batches", lambda routed, *_: trained.append(routed))
    with torch.no_grad():
        wanted = [scene.build(scene.experts[2])(volume.permute(3, 0, 1, 2)).argmax(1) for volume in scene.volumes]
    labels = [torch.stack([mask == 0, mask == 1]).float().permute(0, 2, 3, 1) for mask in wanted]
    train_and_predict(scene, labels, share=0.0)
    weights = torch.stack(list(trained[0].routing_weights().values())).mean(0)
    assert weights.argmax() == 2


def make_rows(method, shift, cases=40):
    draw = np.random.default_rng(0)
    return [
        Row(site, site, seed, method, {f"case{n}": 0.7 + shift + 0.01 * draw.standard_normal() for n in range(cases)})
        for site in ("east", "west")
        for seed in (0, 1)
    ]


def test_the_comparison_is_paired_and_counts_sites_alike():
    mean, low, high = compare([*make_rows("a", 0.02), *make_rows("b", 0.0)], "a", "b")
    assert mean == pytest.approx(0.02) and low == pytest.approx(high), "the same noise in both cancels"
    uneven = [*make_rows("a", 0.0), *make_rows("b", 0.0)]
    uneven[0].dice["case0"] += 4.0
    mean, low, high = compare(uneven, "a", "b")
    assert mean == pytest.approx(4.0 / 40 / 2 / 2) and low < mean < high
    assert np.isnan(compare(uneven, "a", "c")).all()


def test_the_quality_score_is_judged_by_rank_and_by_the_worst_cases_it_finds():
    dice = {f"case{n}": n / 20 for n in range(20)}
    for quality, expected in ((dice, (1.0, 1.0)), ({k: 1 - v for k, v in dice.items()}, (-1.0, 0.0))):
        found = judge_quality([Row("east", "east", 0, "a", dice, quality=quality)], "a")
        assert found["east"] == pytest.approx(expected) and found["all"] == pytest.approx(expected)


def test_a_whole_run_is_resumed_and_reports_every_method(tmp_path):
    (tmp_path / "task.yaml").write_text(SMALL)
    make_sites(tmp_path / "sites")
    command = [sys.executable, "benchmarks/accuracy.py", "--data", tmp_path / "sites", "--task", tmp_path / "task.yaml"]
    command += ["--rounds", "1", "--seeds", "0", "--out", tmp_path / "out", "--outside", "east"]
    command += ["--inside-methods", "FedAvg", "ours", "--methods", "global model", "ours"]

    def run():
        done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    first = run()
    rows = {path: path.read_bytes() for path in (tmp_path / "out" / "rows").iterdir()}
    assert len(rows) == 2 * 2 + 2
    for word in ("| FedAvg ", "| global model ", "| ours minus ", "quality score"):
        assert word in first, first
    assert run() == first
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "rows").iterdir()} == rows
    kept = json.loads((tmp_path / "out" / "accuracy.json").read_bytes())
    assert kept["settings"]["seeds"] == [0] and len(kept["rows"]) == len(rows)
    assert {"sites.png", "cost.png", "cases.csv", "accuracy.md"} <= {p.name for p in (tmp_path / "out").iterdir()}


def make_sites(folder):
    """Three sites of pictures with a bright disk each."""
    from PIL import Image

    grid = np.mgrid[:32, :32]
    for number, site in enumerate(("east", "north", "west")):
        (folder / site / "labels" / "final").mkdir(parents=True)
        for case in range(8):
            inside = np.hypot(*(grid - 12 - case)) < 6 + number
            picture = np.random.default_rng(case).integers(0, 60, (32, 32, 3)) + 100 * inside[..., None]
            Image.fromarray(picture.astype(np.uint8)).save(folder / site / f"case{case}.png")
            Image.fromarray(inside.astype(np.uint8)).save(folder / site / "labels" / "final" / f"case{case}.png")
