"""`iopfl` with its arguments: results on stdout, exit status 2 and one plain line on bad input."""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import socket
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from iopfl.cli import build_parser, main
from iopfl.images.places import find_stack

from .site import GLAND, SPOT, make_site_bank, write_scans


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A site, its bank, a bank of another task, and things that are neither."""
    folder = tmp_path_factory.mktemp("command_line")
    write_scans(folder / "site_a", labeled=4, unlabeled=1)
    write_scans(folder / "unlabeled", labeled=0, unlabeled=2)
    (folder / "empty").mkdir()
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8b no volume")
    make_site_bank(folder / "bank", GLAND)
    make_site_bank(folder / "spots", SPOT)
    (folder / "key.yaml").write_text("base: prostate\nrotation: true\n")
    (folder / "cut.yaml").write_text("name: [mine\n")
    (folder / "file").write_text("")
    return folder


@pytest.fixture
def run(home, monkeypatch, capsys):
    """Run `iopfl` in the folder of `home`; returns exit status, stdout and stderr."""
    monkeypatch.chdir(home)

    def run(words: str) -> tuple[int, str, str]:
        keys = ["--keys", "keys"] if words.split()[0] in ("segment", "evaluate", "serve") else []
        try:
            status = main([*words.split(), *keys])
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def all_parsers(parser: argparse.ArgumentParser, name: str = "iopfl") -> dict[str, argparse.ArgumentParser]:
    found = {name: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                found |= all_parsers(below, f"{name} {word}")
    return found


def test_the_help_of_every_command_has_an_example():
    parsers = all_parsers(build_parser())
    assert {"iopfl serve", "iopfl segment", "iopfl bank import", "iopfl datasets phantom"} <= set(parsers)
    for name, parser in parsers.items():
        assert "(default: None)" not in parser.format_help(), name
        if name != "iopfl":
            assert re.search(rf"example:\n  {name}\b", parser.format_help()), name


def test_the_examples_of_the_help_are_read_by_its_parser():
    for name, parser in all_parsers(build_parser()).items():
        if parser.epilog:
            example = parser.epilog.splitlines()[1].strip()
            arguments = build_parser().parse_args(example.replace("'the consortium'", "them").split()[1:])
            assert callable(arguments.run), name


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("segment site_a/case00.nii.gz --bank nowhere -o out", "nowhere: expected a bank"),
        ("segment site_a/case00.nii.gz --bank empty -o out", "empty: expected a bank"),
        ("segment site_a/case00.nii.gz --bank bank -o out --task liver", "no task 'liver'"),
        ("segment site_a/case00.nii.gz --bank bank -o out --task vessel", "is for another task"),
        ("segment site_a/case00.nii.gz --bank bank -o out --task key.yaml", "unknown key rotation"),
        ("segment site_a/case00.nii.gz --bank bank -o out --task cut.yaml", "no valid YAML"),
        ("segment site_a/case00.nii.gz --bank bank -o out --model best", "invalid choice: 'best'"),
        ("segment site_a/case00.nii.gz --bank bank -o out --model personalized", "no personalized model for site None"),
        ("segment site_a/case00.nii.gz --bank bank -o out --model personalized --site site_q", "site 'site_q'"),
        ("segment site_a/case00.nii.gz --bank bank -o out --device abacus", "no device 'abacus'"),
        ("segment site_a/case00.nii.gz --bank bank -o file", "file"),
        ("segment site_a/case00.nii.gz site_a/case00.nii.gz --bank bank -o out", "several images would write"),
        ("segment site_a/case00.nii.gz site_a/case00.nii --bank bank -o out", "would write case00.nii, case00.nii.gz"),
        ("segment case99.nii.gz --bank bank -o out", "case99.nii.gz"),
        ("segment broken.nii.gz --bank bank -o out", "broken.nii.gz"),
        ("segment site_a --bank bank -o out", "site_a"),
        ("segment --bank bank -o out", "the following arguments are required: images"),
        ("evaluate --studies unlabeled --bank bank --split all", "no labeled image"),
        ("evaluate --studies empty --bank bank", "empty holds no image"),
        ("evaluate --studies nowhere --bank bank", "no folder nowhere"),
        ("evaluate --studies site_a --bank bank --split best", "no split 'best'"),
        ("evaluate --studies site_a --bank spots", "label"),
        ("bank show nowhere", "nowhere: expected a bank"),
        ("bank verify empty --keys keys", "empty: expected a bank"),
        ("bank verify bank --keys others", "not trusted here"),
        ("bank diff bank nowhere", "nowhere: expected a bank"),
        ("bank rollback bank 7", "expected version 7"),
        ("bank export bank out.zip", ".iopfl"),
        ("bank import nothing.iopfl new --keys keys", "nothing.iopfl"),
        ("bank import broken.nii.gz new --keys keys", "broken.nii.gz"),
        ("bank trust me --keys keys", "key"),
        ("bank polish bank", "invalid choice: 'polish'"),
        ("datasets phantom -o site_a", "site_a"),
        ("datasets phantom -o new --cases 1", "1"),
        ("datasets import drive nowhere -o new", "nowhere"),
        ("datasets import best nowhere -o new", "best"),
        ("serve --studies nowhere --bank bank", "an existing folder or a DICOMweb URL, not nowhere"),
        ("serve --studies site_a --bank nowhere", "nowhere: expected a bank"),
        ("serve --studies site_a --bank spots --task prostate", "is for another task"),
        ("serve --studies site_a --bank bank --task key.yaml", "unknown key rotation"),
        ("serve --studies site_a --bank bank --conf colour red", "unknown --conf colour"),
        ("serve --studies site_a --bank bank --device abacus", "no device 'abacus'"),
        ("serve --studies site_a --bank bank --app empty", "an app folder holds main.py"),
        ("serve --studies site_a --bank bank --port 99999", "from 0 to 65535, not 99999"),
        ("serve --studies site_a --bank bank --port many", "many"),
        ("serve --studies site_a --bank bank --state file", "the state folder file cannot be written to"),
        ("polish", "invalid choice: 'polish'"),
    ],
)
def test_bad_input_ends_with_status_2_and_one_line(run, home, command, words):
    before = sorted(home.rglob("*"))
    if command.startswith("serve") and "--state" not in command:
        command += " --state state"
    status, out, err = run(command)
    assert (status, out) == (2, ""), err
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("iopfl") and words in err
    made = [path for path in home.rglob("*") if path not in before and path.is_file()]
    assert all(path.parent.name == "others" for path in made), made


def test_cuda_is_refused_where_there_is_none(run, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for command in ("segment site_a/case00.nii.gz -o out", "evaluate --studies site_a", "serve --studies site_a"):
        status, _, err = run(f"{command} --bank bank --device cuda")
        assert (status, len(err.splitlines())) == (2, 1) and "device cuda was asked for" in err


def test_a_taken_port_is_said_in_one_line(run):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, _, err = run(f"serve --studies site_a --bank bank --state state --port {port}")
    assert (status, len(err.splitlines())) == (2, 1) and f"port {port} is taken" in err


@pytest.mark.parametrize("model", ["", "--model routed", "--model average --quality", "--site site_a"])
def test_segment_writes_masks_on_the_images_grid_and_json_lines(run, home, model):
    status, out, _ = run(f"segment site_a/case00.nii.gz site_a/case01.nii.gz --bank bank -o masks --json {model}")
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["case00.nii.gz", "case01.nii.gz"]
    for line in lines:
        mask, image = nib.load(home / line["mask"]), nib.load(home / line["image"])
        assert mask.shape == image.shape and np.allclose(mask.affine, image.affine, atol=1e-4)
        assert line["task"] == "gland" and line["seconds"] > 0
    if "routed" in model:
        assert sum(lines[0]["routing_weights"].values()) == pytest.approx(1, abs=1e-3)


def test_sizes_of_a_worklist_are_a_table_that_agrees_with_the_masks(run, home):
    status, out, _ = run(
        "segment site_a/case00.nii.gz site_a/case01.nii.gz --bank bank -o masks --json --csv sizes.csv"
    )
    assert status == 0
    with (home / "sizes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(row["image"], row["label"]) for row in rows] == [(line["image"], "gland") for line in lines]
    for row, line in zip(rows, lines, strict=True):
        mask = nib.load(home / line["mask"])
        volume = np.count_nonzero(mask.dataobj) * abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        assert float(row["volume_ml"]) == pytest.approx(volume, rel=1e-3)
        assert line["measurements"]["gland"]["long_axis_mm"] == float(row["long_axis_mm"])
        assert (row["bank"], row["pixels"]) == (line["bank"], "")


def test_where_the_experts_disagree_is_written_on_each_images_grid(run, home):
    assert run("segment site_a/case00.nii.gz --bank bank -o masks3 --disagreement where.nrrd")[0] == 0
    assert (home / "where.nrrd").is_file()
    assert run("segment site_a/case00.nii.gz site_a/case01.nii.gz --bank bank -o masks3 --disagreement where")[0] == 0
    image, where = (nib.load(home / name / "case01.nii.gz") for name in ("site_a", "where"))
    assert where.shape == image.shape
    np.testing.assert_allclose(where.affine, image.affine, atol=1e-5)
    assert 0 < np.asarray(where.dataobj).max() <= 100
    status, _, err = run("segment site_a/case00.nii.gz site_a/case01.nii.gz --bank bank -o m --disagreement a.nii.gz")
    assert (status, "2 images do not fit into a.nii.gz: give a folder" in err) == (2, True)
    status, _, err = run("segment site_a/case00.nii.gz --bank bank -o masks3 --disagreement masks3")
    assert (status, "over a mask" in err) == (2, True)


def test_a_batch_goes_on_after_a_file_that_is_no_image_and_its_status_tells(run, home):
    (home / "no_image.nii.gz").write_bytes(b"x")
    (home / "none.nii.gz").write_bytes(b"x")
    status, out, err = run("segment no_image.nii.gz site_a/case00.nii.gz none.nii.gz --bank bank -o masks2 --json")
    assert status == 1
    failed, done, _ = [json.loads(line) for line in out.splitlines()]
    assert failed["image"] == "no_image.nii.gz" and failed["error"].startswith("no_image.nii.gz: ")
    assert (home / done["mask"]).is_file()
    said = [line for line in err.splitlines() if line.startswith("iopfl: ")]
    assert [line.split(":")[1].strip() for line in said[:2]] == ["no_image.nii.gz", "none.nii.gz"]
    assert said[2:] == ["iopfl: 2 of 3 images were not segmented"]
    assert sorted(path.name for path in (home / "masks2").iterdir()) == ["case00.nii.gz"]
    assert run("segment no_image.nii.gz none.nii.gz --bank bank -o masks2")[0] == 2
    status, _, err = run("segment no_image.nii.gz --bank bank -o masks2")
    assert (status, len(err.splitlines())) == (2, 1)


def test_an_evaluation_goes_on_after_an_image_or_a_label_that_cannot_be_used(run, home, tmp_path):
    site = shutil.copytree(home / "site_a", tmp_path / "site_a")
    (site / "case00.nii.gz").write_bytes(b"x")
    (site / "labels" / "final" / "case01.nii.gz").write_bytes(b"x")
    for model in ("global", "published"):
        status, out, err = run(f"evaluate --studies {site} --bank bank --split all --model {model} --json")
        found = json.loads(out)
        assert (status, found["images"], sorted(found["failed"])) == (1, 2, ["case00", "case01"])
        assert {case["image"] for case in found["cases"]} == {"case02", "case03"}
        said = [line for line in err.splitlines() if line.startswith("iopfl: ")]
        assert len(said) == 3 and said[-1] == "iopfl: 2 of 4 images were not evaluated"
        assert str(tmp_path) not in err
    for image in site.glob("*.nii.gz"):
        image.write_bytes(b"x")
    status, out, err = run(f"evaluate --studies {site} --bank bank --split all --model global")
    assert (status, out, len(err.splitlines())) == (2, "", 1) and "no labeled image could be evaluated" in err


def test_other_json_is_json(run):
    evaluated = json.loads(run("evaluate --studies site_a --bank bank --split all --model routed --json")[1])
    assert (evaluated["site"], evaluated["images"], evaluated["model"]) == ("site_a", 4, "routed")
    assert 0 <= evaluated["dice"] <= 1
    shown = json.loads(run("bank show bank --json")[1])
    assert [entry["role"] for entry in shown["entries"]] == ["global", "personalized", "personalized"]
    assert json.loads(run("bank verify bank --keys keys --json")[1])["experts"] == ["global", "site_a", "site_b"]
    assert isinstance(json.loads(run("bank diff bank spots --json")[1]), dict)


def test_a_bank_travels_as_one_file(run, home, tmp_path):
    assert run(f"bank export bank {tmp_path / 'gland.iopfl'}")[0] == 0
    status, out, _ = run(f"bank import {tmp_path / 'gland.iopfl'} {tmp_path / 'new'} --keys keys")
    assert (status, "serving version 1-" in out) == (0, True)
    refused = run(f"bank import {tmp_path / 'gland.iopfl'} {tmp_path / 'other'} --keys {tmp_path / 'keys'}")
    assert refused[0] == 2 and "iopfl bank trust" in refused[2]
    key = run("bank key --keys keys")[1].strip()
    assert run(f"bank trust {key} --keys {tmp_path / 'keys'}")[0] == 0
    assert run(f"bank import {tmp_path / 'gland.iopfl'} {tmp_path / 'other'} --keys {tmp_path / 'keys'}")[0] == 0


def test_phantoms_are_a_federation_at_once(run, tmp_path):
    status, _, _ = run(f"datasets phantom -o {tmp_path / 'sites'} --cases 2")
    assert status == 0
    splits = json.loads((tmp_path / "sites" / "splits.json").read_text())
    assert len(splits) >= 4


def test_the_mask_of_a_leaning_nifti_opens_at_one_place_and_says_so(run, home):
    volume = nib.load(home / "unlabeled" / "case00.nii.gz")
    leaning = volume.affine.copy()
    leaning[:3, 2] += 1.5 * leaning[:3, 0]  # of slices that shift
    lying = nib.Nifti1Image(np.asarray(volume.dataobj), leaning)
    lying.header["qform_code"] = 0
    nib.save(lying, home / "leaning.nii.gz")
    status, out, err = run(
        "segment leaning.nii.gz unlabeled/case00.nii.gz --bank bank --json --model global -o masks --disagreement maps"
    )
    first, second = map(json.loads, out.splitlines())
    assert status == 0 and "straight grid" in first["grid"] and "grid" not in second
    assert err.count("straight grid") == 1 and "leaning.nii.gz: its axes lean" in err
    stack = find_stack(home / "leaning.nii.gz")
    for folder in ("masks", "maps"):
        seen, shown = (read(home / folder / "leaning.nii.gz") for read in (nib.load, SimpleITK.ReadImage))
        assert seen.shape == shown.GetSize() == stack.straight_shape
        assert np.allclose(seen.affine, stack.straight_affine, atol=1e-4)
        assert np.allclose(shown.GetOrigin(), seen.affine[:3, 3] * [-1, -1, 1], atol=1e-3)
        directions = np.reshape(shown.GetDirection(), (3, 3)) * shown.GetSpacing()
        assert np.allclose(directions, np.diag([-1, -1, 1]) @ seen.affine[:3, :3], atol=1e-4)
