"""A site answers an order twice with the same answer, whatever happened in between."""

import dataclasses
import itertools
import shutil

import pytest
import torch

from fl_bridge.trainer import InProcessTrainer
from iopfl.base.errors import CancelledError, ConfigError, SitsOutError, TooFewLabelsError, WeightsError
from iopfl.base.locks import hold_one, try_hold
from iopfl.core import site_rounds as rounds_module
from iopfl.core.networks import build_network
from iopfl.core.order import Order
from iopfl.core.personalization import PersonalizedModel
from iopfl.core.site_rounds import SiteRounds
from iopfl.core.weights import distance, hash_weights, read_weights, snapshot

from .conftest import write_site


@pytest.fixture
def global_weights(task):
    return snapshot(build_network(task, seed=0))


@pytest.fixture
def build(data, task_file, tmp_path):
    return lambda site="north", state="state": InProcessTrainer(
        str(data / site), str(task_file), str(tmp_path / state / site)
    )


@pytest.fixture
def trained(monkeypatch):
    """How often a training ran."""
    calls = []
    train = rounds_module.train
    monkeypatch.setattr(rounds_module, "train", lambda *args, **kwargs: calls.append(1) or train(*args, **kwargs))
    return calls


def order_of(weights, round_index=0, federation="disk-1"):
    return Order(federation, round_index, hash_weights(weights))


def test_a_replay_trains_and_accumulates_once(build, global_weights, trained, tmp_path):
    first = build().train(global_weights, order_of(global_weights))
    folder = tmp_path / "state" / "north" / "disk-1"
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    second = build().train(global_weights, order_of(global_weights))
    assert len(trained) == 1
    assert distance(first.weights, second.weights) == 0
    assert (first.samples, dict(first.metrics)) == (second.samples, dict(second.metrics))
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    assert set(first.metrics) == {"loss", "seconds", "dice", "dice_local", "dice_global"}


@pytest.mark.parametrize("crash", ["accumulate", "record"])
def test_a_crash_between_two_writes_loses_and_doubles_nothing(build, global_weights, trained, monkeypatch, crash):
    undisturbed, disturbed = build(state="a"), build(state="b")
    for trainer in (undisturbed, disturbed):
        trainer.train(global_weights, order_of(global_weights))
    undisturbed.train(global_weights, order_of(global_weights, 1))
    count = len(trained)

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if crash == "accumulate":
            patch.setattr(PersonalizedModel, "accumulate", fail)
        else:
            patch.setattr(SiteRounds, "_validate", fail)
        with pytest.raises(KeyboardInterrupt):
            disturbed.train(global_weights, order_of(global_weights, 1))
    again = build(state="b").train(global_weights, order_of(global_weights, 1))
    assert len(trained) == count + 1
    expected = undisturbed.personalized(global_weights, order_of(global_weights, 1))
    found = disturbed.personalized(global_weights, order_of(global_weights, 1))
    assert found.round_index == 1
    assert distance(expected.weights, found.weights) == 0
    assert dict(expected.metrics) == dict(found.metrics)
    assert again.metrics["dice_local"] == found.metrics["dice_local"]


def test_a_round_cut_off_before_accumulation_is_accumulated_in_the_next(build, global_weights, monkeypatch, tmp_path):
    whole, cut = build(state="a"), build(state="b")
    for round_index in range(3):
        whole.train(global_weights, order_of(global_weights, round_index))
    cut.train(global_weights, order_of(global_weights, 0))
    with monkeypatch.context() as patch:
        patch.setattr(PersonalizedModel, "save", lambda *args: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            cut.train(global_weights, order_of(global_weights, 1))
    cut.train(global_weights, order_of(global_weights, 2))
    personalized = [
        PersonalizedModel.load(tmp_path / state / "north" / "disk-1" / "personalized.safetensors") for state in "ab"
    ]
    assert distance(personalized[0].weights, personalized[1].weights) == 0


def test_what_is_shared_is_fine_tuned_once_where_that_validates_no_worse(build, global_weights, monkeypatch, tmp_path):
    trainer, order = build(), order_of(global_weights)
    trainer.train(global_weights, order)
    accumulated = PersonalizedModel.load(tmp_path / "state" / "north" / "disk-1" / "personalized.safetensors").weights
    tuned = []
    fine_tune = rounds_module.fine_tune
    monkeypatch.setattr(rounds_module, "fine_tune", lambda *a, **k: tuned.append(fine_tune(*a, **k)) or tuned[-1])
    shared, again = (trainer.personalized(global_weights, order) for _ in range(2))
    assert len(tuned) == 1 and distance(tuned[0], accumulated) > 0
    assert distance(shared.weights, again.weights) == 0
    after = PersonalizedModel.load(tmp_path / "state" / "north" / "disk-1" / "personalized.safetensors").weights
    assert distance(after, accumulated) == 0, "rounds go on from P_k itself"
    for dice, expected in ((0.6, "tuned"), (0.4, "accumulated")):
        (tmp_path / "state" / "north" / "disk-1" / "shared.safetensors").unlink()
        monkeypatch.setattr(
            SiteRounds, "_validate", lambda self, w, dice=dice: 0.5 if distance(w, accumulated) == 0 else dice
        )
        later = trainer.personalized(global_weights, order)
        assert distance(later.weights, accumulated if expected == "accumulated" else tuned[-1]) == 0


def move(weights, factor):
    return {key: value * factor if value.is_floating_point() else value for key, value in weights.items()}


def test_a_round_not_after_the_last_one_is_refused_and_the_last_one_is_repeated(build, global_weights, trained):
    moved = move(global_weights, 1.01)
    first = build().train(global_weights, order_of(global_weights, 3))
    for weights, round_index in ((moved, 3), (moved, 2), (global_weights, 0)):
        with pytest.raises(SitsOutError, match=rf"has trained round {round_index + 1} or a later one before"):
            build().train(weights, order_of(weights, round_index))
    assert distance(build().train(global_weights, order_of(global_weights, 3)).weights, first.weights) == 0
    assert len(trained) == 1
    build().train(moved, order_of(moved, 5))
    assert len(trained) == 2


def test_one_personalized_model_is_answered_once_whatever_the_request_says(build, global_weights, monkeypatch):
    build().train(global_weights, order_of(global_weights, 3))
    first = build().personalized(global_weights, order_of(global_weights, 3))
    tuned, fine_tune = [], rounds_module.fine_tune
    monkeypatch.setattr(rounds_module, "fine_tune", lambda *a, **k: tuned.append(1) or fine_tune(*a, **k))
    for round_index in range(6):
        weights = move(global_weights, 1 + round_index)
        again = build().personalized(weights, order_of(weights, round_index))
        assert hash_weights(again.weights) == hash_weights(first.weights)
        assert dict(again.metrics) == dict(first.metrics), "no scores of other weights on the site's images"
    assert not tuned


def test_federations_do_not_mix(build, global_weights, tmp_path):
    for federation in ("one", "two"):
        build().train(global_weights, order_of(global_weights, federation=federation))
    assert {path.name for path in (tmp_path / "state" / "north").iterdir()} == {"one", "two"}
    with pytest.raises(ConfigError, match="federation id"):
        build().train(global_weights, order_of(global_weights, federation="../../etc"))


def test_the_local_model_is_kept(build, global_weights, tmp_path):
    update = build().train(global_weights, order_of(global_weights))
    kept, _ = read_weights(tmp_path / "state" / "north" / "disk-1" / "local.safetensors")
    assert distance(update.weights, kept) == 0


def test_sites_and_rounds_have_their_own_seeds(build, global_weights):
    first = build("north", "a").train(global_weights, order_of(global_weights))
    again = build("north", "b").train(global_weights, order_of(global_weights))
    later = build("north", "c").train(global_weights, order_of(global_weights, 1))
    assert distance(first.weights, again.weights) == 0
    assert distance(first.weights, later.weights) > 0


def test_too_few_labels_are_said(data, task_file, tmp_path, global_weights):
    write_site(data / "new", images=6, seed=5, labels=2)
    trainer = InProcessTrainer(str(data / "new"), str(task_file), str(tmp_path / "state"))
    with pytest.raises(TooFewLabelsError, match=r"waiting for labels \(\d of 4\)"):
        trainer.train(global_weights, order_of(global_weights))
    with pytest.raises(SitsOutError, match="trained in no round"):
        trainer.personalized(global_weights, order_of(global_weights))


def test_another_networks_weights_are_refused(build, global_weights):
    with pytest.raises(WeightsError, match="missing"):
        build().train({"weight": torch.ones(1)}, order_of(global_weights))


def test_a_stopped_round_leaves_nothing_and_can_be_trained_again(build, global_weights, tmp_path):
    with pytest.raises(CancelledError):
        build().train(global_weights, order_of(global_weights), cancelled=lambda: True)
    update = build().train(global_weights, order_of(global_weights))
    assert dataclasses.is_dataclass(update)


def test_turns_are_as_many_as_files(tmp_path):
    paths = [tmp_path / "turn-0", tmp_path / "turn-1"]
    with hold_one(paths) as one, hold_one(paths) as other:
        assert {one, other} == set(paths)
        with pytest.raises(CancelledError), hold_one(paths, cancelled=lambda: True):
            pass
    with hold_one(paths) as one, try_hold(one) as held:
        assert held is None


DAMAGES = {"halved": lambda content: content[: len(content) // 2], "empty": lambda content: b"", "missing": None}


def test_a_damaged_file_of_a_round_is_found_again_or_named(build, global_weights, tmp_path, caplog):
    """Another's files stay as they are; nothing ends in a traceback, and no answer is another one."""
    order = order_of(global_weights)
    answer = build().train(global_weights, order)
    shared = build().personalized(global_weights, order)
    whole = tmp_path / "state" / "north" / "disk-1"
    names = [path.name for path in whole.iterdir() if path.stat().st_size]
    assert len(names) == 5, names
    for name, damage in itertools.product(names, DAMAGES):
        state = f"{name}-{damage}"
        folder = tmp_path / state / "north" / "disk-1"
        shutil.copytree(whole, folder)
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        if DAMAGES[damage] is not None:
            (folder / name).write_bytes(DAMAGES[damage](content))
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != name}
        try:
            again = build(state=state).train(global_weights, order)
            found = build(state=state).personalized(global_weights, order)
        except WeightsError as error:
            assert name in str(error) and "\n" not in str(error) and damage != "missing"
            assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != name} == before
            continue
        assert distance(answer.weights, again.weights) == distance(shared.weights, found.weights) == 0, state
        assert {**answer.metrics, "seconds": 0} == {**again.metrics, "seconds": 0}
        assert shared.metrics == found.metrics and not [record for record in caplog.records if record.exc_info]
