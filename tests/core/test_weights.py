"""Weights outside a network: nothing aliased, nothing half written, nothing unchecked."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from iopfl.base.errors import WeightsError
from iopfl.base.files import replacing, write_bytes
from iopfl.core.networks import build_network
from iopfl.core.weights import (
    average,
    check_weights,
    distance,
    hash_weights,
    read_weights,
    snapshot,
    write_weights,
)

from .tiny import DISK, make_experts, same_weights


def test_a_snapshot_does_not_change_when_training_goes_on():
    network = build_network(DISK, seed=0).train()
    kept = snapshot(network)
    copy = {key: value.clone() for key, value in kept.items()}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.randn(2, 1, 32, 32)).square().mean().backward()
    optimizer.step()
    assert same_weights(kept, copy)
    moved = [key for key, value in network.state_dict().items() if not torch.equal(value, kept[key])]
    assert any(key.endswith("running_mean") for key in moved)
    assert any(key.endswith("weight") for key in moved)


def test_the_average_is_weighted_by_shares_and_takes_statistics_with_it():
    models = [
        {
            "w": torch.tensor([0.0, 4.0]),
            "n.running_mean": torch.tensor([1.0]),
            "n.num_batches_tracked": torch.tensor(3),
        },
        {
            "w": torch.tensor([8.0, 0.0]),
            "n.running_mean": torch.tensor([5.0]),
            "n.num_batches_tracked": torch.tensor(9),
        },
    ]
    mean = average(models, [30, 10])
    assert mean["w"].tolist() == [2.0, 3.0]
    assert mean["n.running_mean"].item() == 2.0
    assert mean["n.num_batches_tracked"].item() == 3
    assert mean["n.num_batches_tracked"].dtype == torch.int64
    assert average(models)["w"].tolist() == [4.0, 2.0]


def test_the_average_of_one_model_is_that_model_and_shares_nothing_with_it():
    model = make_experts(DISK, 1)[0]
    mean = average([model], [7])
    assert same_weights(mean, model)
    assert not any(mean[key].data_ptr() == model[key].data_ptr() for key in model)


def test_the_average_is_the_same_bits_each_time():
    models = make_experts(DISK, 4)
    assert hash_weights(average(models, [3, 1, 4, 1])) == hash_weights(average(models, [3, 1, 4, 1]))


def test_a_site_with_no_share_leaves_no_trace():
    models = make_experts(DISK, 3)
    assert same_weights(average(models, [1, 2, 0]), average(models[:2], [1, 2]))


@pytest.mark.parametrize("shares", [[], [1], [1, -1], [0, 0], [float("nan"), 1], [float("inf"), 1]])
def test_shares_that_do_not_fit_are_refused(shares):
    with pytest.raises(WeightsError, match="expected a non-negative share for each of 2 models"):
        average(make_experts(DISK, 2), shares)


def test_no_models_have_no_average():
    with pytest.raises(WeightsError, match="each of 0 models"):
        average([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": torch.zeros(1)}, r"north: not the weights of this network: missing none, unexpected \['extra'\]"),
        ({"w": None}, r"missing \['w'\], unexpected none of 2 keys"),
        ({"w": torch.zeros(3)}, r"north: w: expected \(2,\) torch.float32, given \(3,\)"),
        ({"w": torch.zeros(2).double()}, "given .* torch.float64"),
        ({"w": torch.tensor([0.0, float("nan")])}, "north: w holds NaN or infinity"),
        ({"w": torch.tensor([0.0, -float("inf")])}, "north: w holds NaN or infinity"),
    ],
)
def test_wrong_weights_are_refused_by_key(changes, message):
    reference = {"w": torch.zeros(2), "n": torch.tensor(1)}
    check_weights(reference, reference, what="north")
    given = {key: value for key, value in {**reference, **changes}.items() if value is not None}
    with pytest.raises(WeightsError, match=message):
        check_weights(given, reference, what="north")


def test_distance_is_euclidean_over_floating_point_entries():
    first = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]]), "n": torch.tensor(5)}
    second = {"a": torch.zeros(2), "b": torch.zeros(1, 1), "n": torch.tensor(900)}
    assert distance(first, second) == distance(second, first) == 5.0


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(4)},
        {"a": torch.tensor([1.0, 2.0]), "c": torch.tensor(3)},
        {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3)},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3, dtype=torch.int32)},
    ],
)
def test_the_hash_tells_values_keys_shapes_and_types_apart(other):
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    assert hash_weights(weights) == hash_weights(dict(reversed(weights.items())))
    assert hash_weights(weights) != hash_weights(other)


def test_a_file_brings_back_weights_and_metadata(tmp_path):
    weights = make_experts(DISK, 1)[0]
    write_weights(tmp_path / "deep" / "w.safetensors", weights, {"round_index": "3"})
    again, metadata = read_weights(tmp_path / "deep" / "w.safetensors")
    assert same_weights(again, weights)
    assert metadata == {"round_index": "3"}


def test_a_file_that_is_not_whole_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match=r"w.safetensors: expected a whole safetensors file"):
        read_weights(path)
    write_weights(path, make_experts(DISK, 1)[0])
    for content in (path.read_bytes()[:-10], b"", b"not safetensors at all"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"w.safetensors: expected a whole safetensors file"):
            read_weights(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "state.bin"
    write_bytes(path, b"old")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "state.bin"
    write_bytes(path, b"old")

    def write_half(target: Path) -> None:
        with replacing(target) as temporary:
            temporary.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
