"""The task: whole round trips, and every mistake in a user's file named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import yaml

from iopfl.base.errors import ConfigError
from iopfl.core.colors import label_colors
from iopfl.core.networks import build_network
from iopfl.core.task import Task, builtin_tasks, read_task

from .tiny import BALL, DISK


@pytest.mark.parametrize("name", builtin_tasks())
def test_builtin_tasks_survive_a_trip_through_yaml(name, tmp_path):
    task = read_task(name)
    assert task.name == name
    assert Task.from_dict(task.to_dict()) == task
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(task.to_dict()))
    assert read_task(file) == task


@pytest.mark.parametrize("name", builtin_tasks())
def test_classes_and_colors_go_by_value_whatever_the_order_of_names(name):
    """A bank's manifest has its keys sorted: were classes in that order, a rim would come back as a cup."""
    task = read_task(name)
    read_back = Task.from_dict(json.loads(json.dumps(task.to_dict(), sort_keys=True)))
    assert list(read_back.label_values) == sorted(task.label_values)
    assert read_back.label_values == task.label_values
    assert read_back.scored_regions == task.scored_regions
    assert list(label_colors(read_back).items()) == list(label_colors(task).items())


def test_there_are_the_four_builtin_tasks():
    assert builtin_tasks() == ("hippocampus", "optic_disc_cup", "prostate", "vessel")


@pytest.mark.parametrize(
    ("name", "subjects"),
    [
        ("prostate", {"Case01_slice7": "Case01", "Case01_slice12": "Case01", "Case10": "Case10"}),
        (
            "vessel",
            {"Image_01L": "Image_01", "Image_01R": "Image_01", "07_dr": "07", "21_training": "21", "im0001": "im0001"},
        ),
        ("hippocampus", {"hippocampus_008": "hippocampus_008"}),
    ],
)
def test_builtin_tasks_find_the_subject(name, subjects):
    task = read_task(name)
    assert {stem: task.find_subject(stem) for stem in subjects} == subjects


def test_a_group_that_took_no_part_in_the_match_leaves_the_stem():
    assert replace(DISK, subject=r"^(?:p(\d+))?").find_subject("scan7") == "scan7"


def test_regions_and_classes_follow_the_order_of_values():
    task = read_task("optic_disc_cup")
    assert task.scored_regions == {"disc": (1, 2), "cup": (2,)}
    assert replace(BALL, labels={"front": 9, "back": 4}).label_values == (0, 4, 9)


def write(folder, text, name="mine.yaml"):
    (folder / name).write_text(text)
    return folder / name


def test_a_users_file_changes_what_it_says_and_keeps_the_rest(tmp_path):
    file = write(tmp_path, "base: prostate\nname: kidney\nlabels: {kidney: 3}\ntraining: {alpha: 0.5}\n")
    task, base = read_task(file), read_task("prostate")
    assert (task.name, task.labels, task.training.alpha) == ("kidney", {"kidney": 3}, 0.5)
    assert task.training == replace(base.training, alpha=0.5)
    assert replace(task, name=base.name, labels=base.labels, codes=base.codes, training=base.training) == base


def test_a_base_may_be_a_file_beside_it_and_may_leave_a_section_empty(tmp_path):
    write(tmp_path, "base: vessel\nname: first\ntraining:\n", name="first.yaml")
    second = write(tmp_path, "base: first.yaml\nname: second\ntraining: {batch_size: 7}\n")
    assert read_task(second).training.batch_size == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nowhere\nname: a\n", "no task 'nowhere': expected one of hippocampus"),
        ("base: mine.yaml\nname: a\n", "leads back to itself"),
        ("name: a\nlabels: [unclosed\n", "mine.yaml: no valid YAML in line 3: expected ',' or ']', but got"),
        ("name: a\n\tb: c\n", "mine.yaml: no valid YAML in line 2: found character"),
        ("name: 2026-13-45\n", "mine.yaml: no valid YAML: month must be in 1..12"),
        ("name: \x07\n", "mine.yaml: no valid YAML: unacceptable character"),
        ("[" * 5000, "mine.yaml: no valid YAML: nested too deep"),
        ("- a list\n", "expected 'key: value' lines, given list"),
        ("", "expected 'key: value' lines, given NoneType"),
        ("name: a\n", "labels, spatial_dims is missing"),
        ("base: prostate\ncolour: red\n", "task: unknown key colour; there are name, labels"),
        ("base: prostate\n1: red\ncolour: red\n", "unknown key 1, colour"),
        ("base: prostate\ntraining: {rate: 1}\n", "task.training: unknown key rate; there are local_steps"),
        ("base: prostate\ntraining: 5\n", "task.training: expected 'key: value' lines, given 5"),
        ("base: prostate\nname: no\n", "task.name: expected str, given False"),
        ("base: prostate\nslices: three\n", "task.slices: expected int, given 'three'"),
        ("base: prostate\nslices: true\n", "task.slices: expected int, given True"),
        ("base: prostate\nsize: 384\n", "task.size: expected .*tuple.*, given 384"),
        ("base: prostate\nsize: [384, 1.5]\n", "task.size: expected int, given 1.5"),
        ("base: prostate\nlabels: {prostate: one}\n", "task.labels.prostate: expected int, given 'one'"),
        ("base: prostate\ntraining: {alpha: high}\n", "task.training.alpha: expected float, given 'high'"),
    ],
)
def test_a_wrong_file_is_refused_by_name_of_what_is_wrong(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as refused:
        read_task(write(tmp_path, text))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "Prostate"}, "name: lower-case letters, digits and _ expected, given 'Prostate'"),
        ({"name": "a_routed"}, "not ending in _routed"),
        ({"spatial_dims": 4}, "spatial_dims: 2 or 3 expected, given 4"),
        ({"labels": {}}, "labels: at least one"),
        ({"labels": {"a": 0}}, "labels: values 1 to 255 expected"),
        ({"labels": {"a": 256}}, "labels: values 1 to 255 expected"),
        ({"labels": {"a": 1, "b": 1}}, "labels: different values expected"),
        ({"channels": 2}, "channels: 1 or 3 expected, given 2"),
        ({"slices": 2}, "slices: an odd number expected, given 2"),
        ({"slices": -1}, "slices: an odd number expected, given -1"),
        ({"spatial_dims": 3, "slices": 3, "size": [8, 8, 8]}, "slices: 1 for a 3D task expected, given 3"),
        ({"size": [32]}, r"size: 2 numbers expected, given \(32,\)"),
        ({"size": [32, 0]}, "size: positive numbers expected"),
        ({"spacing": [1.0, 0.0]}, "spacing: 2 positive numbers, or none expected"),
        ({"spacing": []}, "spacing: 2 positive numbers, or none expected"),
        ({"intensity": "loud"}, "intensity: one of zscore, percentile expected, given 'loud'"),
        ({"flips": [2]}, "flips: spatial axes from 0 expected"),
        ({"regions": {"all": ["lesion"]}}, "regions: made of labels expected"),
        ({"training": {"alpha": 1.1}}, "training.alpha: 0 to 1 expected, given 1.1"),
        ({"training": {"alpha": float("nan")}}, "training.alpha: 0 to 1 expected, given nan"),
        ({"training": {"validation_share": 1.0}}, "training.validation_share: 0 to below 1 expected"),
        ({"training": {"batch_size": 0}}, "training.batch_size: positive expected, given 0"),
        ({"training": {"local_steps": -1}}, "training.local_steps: 0 or more expected, given -1"),
        ({"adaptation": {"shares": []}}, "adaptation.shares: numbers from 0 to 1 expected"),
        ({"adaptation": {"shares": [0.5, 2]}}, "adaptation.shares: numbers from 0 to 1 expected"),
        ({"adaptation": {"max_instances": 0}}, "adaptation.max_instances: positive expected, given 0"),
        ({"subject": "(open"}, "subject is no regular expression"),
        ({"subject": r"\d+"}, "subject needs a group"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(values, message):
    with pytest.raises(ConfigError, match=message):
        Task.from_dict({**DISK.to_dict(), **values})


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"name": "Unet"}, "no network 'Unet': expected one of BasicUNet, UNet"),
        ({"name": "UNet", "args": {"depth": 3}}, "network UNet does not take {'depth': 3}"),
        ({"name": "UNet", "args": {"channels": [4, 8], "strides": [2, 2], "norm": "no"}}, "network UNet does not take"),
    ],
)
def test_a_wrong_network_is_named(network, message):
    with pytest.raises(ConfigError, match=message):
        build_network(Task.from_dict({**DISK.to_dict(), "network": network}))


def test_a_networks_seed_decides_its_weights_and_leaves_the_callers_random_state():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again, other = (build_network(DISK, seed=seed).state_dict() for seed in (1, 1, 2))
    key = next(key for key in first if key.endswith("weight"))
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])
    assert torch.equal(state, torch.get_rng_state())


def test_other_labels_than_the_bases_leave_its_codes_and_regions_behind(tmp_path):
    path = tmp_path / "lesion.yaml"
    path.write_text("base: optic_disc_cup\nname: lesion\nlabels: {lesion: 1}\n")
    assert read_task(path).codes == read_task(path).regions == {}


@pytest.mark.parametrize(
    ("codes", "message"),
    [("{other: [a, b, c]}", "codes: of labels"), ("{lesion: [a, b]}", "codes: .value, scheme, meaning. of each label")],
)
def test_a_code_is_complete_and_of_a_label(codes, message, tmp_path):
    path = tmp_path / "lesion.yaml"
    path.write_text(f"base: prostate\nname: lesion\nlabels: {{lesion: 1}}\ncodes: {codes}\n")
    with pytest.raises(ConfigError, match=message):
        read_task(path)
