"""Local training: it learns, it is reproducible, it stops, it sees every instance once an epoch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iopfl.base.errors import CancelledError, TooFewLabelsError, TrainingError
from iopfl.core import training
from iopfl.core.networks import build_network
from iopfl.core.sites import find_cases
from iopfl.core.task import Network, read_task
from iopfl.core.training import LabeledImages, build_augmentation, fine_tune, train, validate
from iopfl.core.transforms import to_instances
from iopfl.core.weights import distance, snapshot

from .tiny import BALL, DISK, STACK, same_weights


@pytest.fixture(scope="module")
def disks(disk_site):
    return LabeledImages(find_cases(disk_site), DISK)


@pytest.fixture(scope="module")
def balls(ball_site):
    return LabeledImages(find_cases(ball_site), BALL)


def start(task):
    return build_network(task, seed=0)


def test_a_network_of_volumes_is_trained_the_same_whatever_memory_held_before(ball_site):
    """In bfloat16 a CPU's 3D convolutions read memory that nobody wrote: at times the gradient was NaN."""
    network = Network("BasicUNet", {"features": [8, 8, 16, 32, 64, 8], "norm": "batch", "upsample": "deconv"})
    task = replace(BALL, network=network, size=(32, 48, 32), training=replace(BALL.training, batch_size=4))
    images = LabeledImages(find_cases(ball_site), task)
    found = []
    for _ in range(3):
        for size in range(1, 300):
            torch.full((1000 * size,), float("nan"))  # freed at once
        found.append(train(build_network(task, seed=0), images, seed=0, steps=2).weights)
    assert same_weights(found[0], found[1]) and same_weights(found[0], found[2])


@pytest.mark.parametrize("site", ["disks", "balls"])
def test_the_loss_falls_and_validation_rises(site, request):
    images = request.getfixturevalue(site)
    network, losses = start(images.task), []
    before = validate(network, images)
    result = train(
        network, images, seed=0, steps=30, progress=lambda done, steps, loss: losses.append((done, steps, loss))
    )
    assert [step[:2] for step in losses] == [(done, 30) for done in range(1, 31)]
    first, last = (sum(step[2] for step in part) / 6 for part in (losses[:6], losses[-6:]))
    assert last < 0.9 * first
    assert result.loss == pytest.approx(last)
    assert result.steps == 30
    assert validate(network, images) > before
    assert not network.training


@pytest.mark.parametrize("site", ["disks", "balls"])
def test_the_same_seed_gives_the_same_weights(site, request):
    images = request.getfixturevalue(site)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(results))
        results.append(train(start(images.task), images, seed=seed, steps=3).weights)
    assert same_weights(results[0], results[1])
    assert not same_weights(results[0], results[2])


def test_the_result_is_a_snapshot(disks):
    network = start(DISK)
    result = train(network, disks, seed=0, steps=2)
    kept = {key: value.clone() for key, value in result.weights.items()}
    assert same_weights(snapshot(network), kept)
    train(network, disks, seed=1, steps=2)
    assert same_weights(result.weights, kept)


def test_fine_tuning_trains_a_copy_for_its_epochs_with_a_falling_learning_rate(disks, monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self, *a, **k: rates.append(self.param_groups[0]["lr"]) or step(self, *a, **k)
    )
    weights = snapshot(start(DISK))
    kept = {key: value.clone() for key, value in weights.items()}
    tuned = fine_tune(weights, disks, seed=0)
    epoch = -(-len(disks.instances) // DISK.training.batch_size)
    assert len(rates) == DISK.training.fine_tune_epochs * epoch
    assert rates == sorted(rates, reverse=True) and rates[0] == DISK.training.learning_rate and rates[-1] < rates[0] / 4
    assert same_weights(weights, kept) and not same_weights(tuned, weights)
    untouched = LabeledImages(disks._cases.data, replace(DISK, training=replace(DISK.training, fine_tune_epochs=0)))
    assert same_weights(fine_tune(weights, untouched, seed=0), weights)


def test_every_instance_is_seen_once_an_epoch(phantom_sites, monkeypatch):
    task = replace(STACK, labels={"prostate": 1}, training=replace(STACK.training, batch_size=5))
    images = LabeledImages(find_cases(phantom_sites / "site_a"), task)
    assert len(images.instances) == 4 * 15
    seen = Counter()
    read = LabeledImages.instance
    monkeypatch.setattr(LabeledImages, "instance", lambda self, index: (seen.update([index]), read(self, index))[1])
    result = train(start(task), images, seed=0)
    assert result.steps == 12
    assert set(seen) == set(range(60))
    assert set(seen.values()) == {1}
    train(start(task), images, seed=0, steps=24)
    assert set(seen.values()) == {3}


def test_the_tasks_local_steps_hold_unless_told_otherwise(disk_site):
    task = replace(DISK, training=replace(DISK.training, local_steps=2))
    images = LabeledImages(find_cases(disk_site), task)
    assert train(start(task), images, seed=0).steps == 2
    assert train(start(task), images, seed=0, steps=1).steps == 1


def test_instances_are_those_that_inference_sees(phantom_sites):
    task = replace(STACK, labels={"prostate": 1})
    images = LabeledImages(find_cases(phantom_sites / "site_d")[:2], task)
    expected = torch.cat([to_instances(images[case]["image"], task) for case in range(2)])
    assert len(expected) == len(images.instances)
    for index in range(len(expected)):
        torch.testing.assert_close(images.instance(index)["image"], expected[index])


@pytest.mark.parametrize("task", [DISK, replace(DISK, rotations=True), BALL], ids=["2D", "turned", "3D"])
def test_augmentation_keeps_the_windows_size_and_moves_the_label_with_the_image(task):
    label = torch.zeros(2, *(edge + 5 for edge in task.size))
    label[1, 4:15, 6:18] = 1
    label[0] = 1 - label[1]
    augment = build_augmentation(replace(task, training=replace(task.training, augment=False)), seed=0)
    for _ in range(10):
        out = augment({"image": label[1:].clone(), "label": label.clone()})
        assert tuple(out["label"].shape[1:]) == task.size
        assert torch.equal(torch.as_tensor(out["image"][0]), torch.as_tensor(out["label"][1]))


@pytest.mark.parametrize("after", [0, 3])
def test_cancel_leaves_at_once(after, disks):
    steps = []
    with pytest.raises(CancelledError, match=f"training stopped after {after} of 50 steps"):
        train(
            start(DISK),
            disks,
            seed=0,
            steps=50,
            progress=lambda done, *_: steps.append(done),
            cancelled=lambda: len(steps) >= after,
        )
    assert len(steps) == after


def test_too_few_labels_are_counted(disk_site):
    cases = find_cases(disk_site)
    task = replace(DISK, training=replace(DISK.training, min_labels=5))
    unlabeled = [replace(case, label=None) for case in cases[3:]]
    with pytest.raises(TooFewLabelsError, match=r"3 labeled image\(s\) to train on, disk needs 5: label more images"):
        LabeledImages([*cases[:3], *unlabeled], task)
    assert len(LabeledImages([*cases[:3], *unlabeled], task, minimum=3)) == 3
    with pytest.raises(TooFewLabelsError, match=r"0 labeled image\(s\) .* needs 1"):
        LabeledImages(unlabeled, task, minimum=0)


def test_the_proximal_term_keeps_closer_to_the_start(disks):
    moved = []
    for weight in (0.0, 1.0, 100.0):
        network = start(DISK)
        before = dict(network.named_parameters())
        before = {key: value.detach().clone() for key, value in before.items()}
        train(network, disks, seed=0, steps=15, proximal_weight=weight)
        moved.append(distance(dict(network.named_parameters()), before))
    assert moved[0] > moved[1] > moved[2] > 0


def test_images_beyond_the_cache_are_read_again(disk_site, disks, monkeypatch):
    monkeypatch.setattr(training, "_CACHED_PIXELS", 1)
    reads = Counter()
    read = training.read_image
    monkeypatch.setattr(
        training, "read_image", lambda path, task: (reads.update([Path(path).name]), read(path, task))[1]
    )
    images = LabeledImages(find_cases(disk_site), DISK)
    expected = train(start(DISK), disks, seed=0, steps=4)
    before = reads.copy()
    assert same_weights(train(start(DISK), images, seed=0, steps=4).weights, expected.weights)
    again = reads - before
    assert len(again) >= 9
    assert "case00.png" not in again


def test_a_diverging_loss_is_an_error(disk_site):
    task = replace(DISK, training=replace(DISK.training, learning_rate=1e30))
    with pytest.raises(TrainingError, match=r"the loss became .* at step .*: lower training.learning_rate"):
        train(start(task), LabeledImages(find_cases(disk_site), task), seed=0, steps=20)


def test_validation_counts_the_regions_a_case_has(ball_site, monkeypatch):
    """A case without the back region still counts with the front one."""
    images = LabeledImages(find_cases(ball_site)[:2], BALL)
    whole = images[0]
    only_front = {
        **whole,
        "label": torch.stack([whole["label"][0] + whole["label"][2], whole["label"][1], 0 * whole["label"][2]]),
    }
    monkeypatch.setattr(LabeledImages, "__len__", lambda self: 1)
    monkeypatch.setattr(LabeledImages, "__getitem__", lambda self, index: only_front)
    monkeypatch.setattr(training, "predict", lambda *_, **__: only_front["label"])
    assert validate(start(BALL), images) == pytest.approx(1.0)


def test_real_volumes_are_trained_on(shared_data):
    network = Network("UNet", {"channels": [4, 8], "strides": [2], "norm": "batch"})
    task = replace(read_task("hippocampus"), network=network)
    images = LabeledImages(find_cases(shared_data / "hippocampus")[:5], task)
    result = train(start(task), images, seed=0, steps=2)
    assert torch.isfinite(torch.tensor(result.loss))
