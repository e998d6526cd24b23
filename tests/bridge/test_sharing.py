"""Noise that no number of questions averages away, counts that no server moves, and what the noise is worth."""

from __future__ import annotations

import json
import math
import os
import re
import signal

import pytest
import torch

from fl_bridge.epsilon import describe_sharing, find_epsilon
from fl_bridge.exchange import TASK_SHARE, TASK_TRAIN
from fl_bridge.privacy import privatize
from fl_bridge.sharing import Sharing
from fl_bridge.site_policy import SitePolicy
from iopfl.base.errors import ConfigError, SitsOutError, WeightsError
from iopfl.base.reasons import Reason
from iopfl.core.order import Order, SharedModel, SiteUpdate
from iopfl.core.weights import distance, hash_weights

from .kit import Kit

ORDER = Order("fed-1", 3, "base")
BASE = {"weight": torch.zeros(1000), "bn.running_var": torch.full((4,), 1e-4)}
MODEL = {"weight": torch.ones(1000), "bn.running_var": torch.full((4,), 1e-4)}
DAY = 24 * 3600


class Clock:
    """A site's clock, which a test sets."""

    def __init__(self):
        self.now = 1e9

    def __call__(self):
        return self.now


class KeptTrainer:
    """A site's trainer whose models are given: what is asked is how they leave."""

    def __init__(self, model=MODEL):
        self.model = model

    def configure(self, policy, folder):
        pass

    def train(self, global_weights, order, *, cancelled):
        return SiteUpdate(self.model, 9, {})

    def personalized(self, global_weights, order, *, cancelled):
        return SharedModel(self.model, order.round_index, 9, {"dice": 0.5})


class AskedKit(Kit):
    """Asked for the model, from the same weights, unless said otherwise; it has trained a round."""

    def __init__(self, *arguments, **policy):
        super().__init__(*arguments, **policy)
        count_a_round(self.folder)

    def ask(self, base=BASE, order=ORDER, task=TASK_SHARE):
        return super().ask(base, order, task)


@pytest.fixture
def kit(tmp_path):
    return lambda trainer=None, **policy: AskedKit(tmp_path, trainer or KeptTrainer(), **policy)


def count_a_round(folder):
    """A round that the site trained before, without which it has no model."""
    with Sharing(SitePolicy(), folder).count_round(Order("fed-1", 0, "before")):
        pass


def make_model(seed):
    generator = torch.Generator().manual_seed(seed)
    return {**MODEL, "weight": torch.randn(1000, generator=generator)}


def test_the_noise_of_four_hundred_answers_is_that_of_one(kit):
    site = kit(clip=2.0, noise=0.5)
    clean = privatize(MODEL, BASE, clip=2.0, noise=0.0)["weight"]
    answers = []
    for number in range(400):
        if not number % 100:
            site.restart()
        base = {**BASE, "weight": torch.full((1000,), number / 100)}
        answers.append(site.ask(base, Order("fed-1", number % 11, f"base-{number}"))["weight"])
    one, mean = ((weights - clean).std() for weights in (answers[0], torch.stack(answers).mean(0)))
    assert one == pytest.approx(1.0, rel=0.1) and mean == pytest.approx(float(one), rel=1e-3)
    spread = torch.stack(answers).std(0).max()
    assert spread < 1e-5, "rounding alone: the same model whatever it is told as a difference to"


def test_clip_and_noise_are_those_that_were_set():
    clipped = privatize(MODEL, BASE, clip=2.0, noise=0.0)
    assert distance(clipped, BASE) == pytest.approx(2.0, rel=1e-2)
    noisy = privatize(MODEL, BASE, clip=2.0, noise=0.5)
    assert (noisy["weight"] - clipped["weight"]).std() == pytest.approx(1.0, rel=0.1)
    assert (noisy["bn.running_var"] > 0).all(), "a variance stays one"
    assert distance(privatize(MODEL, BASE, clip=0.0, noise=0.0), MODEL) == 0
    large = {"weight": torch.zeros(200_000)}
    noise = privatize(large, large, clip=1.0, noise=1.0)["weight"].double()
    assert noise.mean().abs() < 0.01 and noise.std() == pytest.approx(1.0, rel=0.01)
    assert (noise.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.005)


def test_what_was_shared_is_repeated_byte_by_byte_with_its_figures(tmp_path):
    count_a_round(tmp_path)
    sharing = Sharing(SitePolicy(clip=2.0, noise=0.5), tmp_path)
    first = sharing.share(lambda: SharedModel(MODEL, 3, 9, {"dice": 0.5}), BASE)
    other = {key: value + 1 for key, value in BASE.items()}
    again = Sharing(SitePolicy(clip=2.0, noise=0.5), tmp_path).share(lambda: SharedModel(MODEL, 7, 8, {}), other)
    assert hash_weights(first.weights) == hash_weights(again.weights)
    assert (again.round_index, again.samples, again.metrics) == (3, 9, {"dice": 0.5})
    another = sharing.share(lambda: SharedModel(make_model(0), 8, 9, {}), BASE)
    assert hash_weights(another.weights) != hash_weights(first.weights)
    with pytest.raises(SitsOutError, match="keeps the last answer alone"):
        sharing.share(lambda: SharedModel(MODEL, 3, 9, {}), BASE)


def test_shares_are_counted_by_the_site_whatever_round_is_claimed(kit):
    trainer = KeptTrainer()
    site = kit(trainer, max_shares=2, clip=1.0)
    answers = []
    for number in range(6):
        trainer.model = make_model(number)
        order = Order("fed-1", 100 * number, str(number))
        assert isinstance(site.ask(order=order, task=TASK_TRAIN), dict)
        site.restart()
        answers.append(site.ask(order=order))
    assert [isinstance(answer, dict) for answer in answers] == [True, True, False, False, False, False]


def test_rounds_between_two_shares_are_those_trained_here(kit):
    trainer = KeptTrainer()
    site = kit(trainer, share_every=3)
    assert isinstance(site.ask(), dict)
    for number in range(1, 4):
        trainer.model = make_model(number)
        for claimed in (number, 50 + number):
            refused = site.ask(order=Order("fed-1", claimed * 1000, "later"))
            assert isinstance(refused, str), "a round that is only claimed is none"
        site.ask(order=Order("fed-1", number, "base"), task=TASK_TRAIN)
        site.ask(order=Order("fed-1", number, "base"), task=TASK_TRAIN)  # a replay
    assert isinstance(site.ask(order=Order("fed-1", 3, "base")), dict)


def test_days_between_two_shares_go_by_the_sites_clock_which_may_go_back(tmp_path):
    clock = Clock()
    count_a_round(tmp_path)
    sharing = Sharing(SitePolicy(share_days=2.0), tmp_path, now=clock)

    def ask(number):
        sharing.share(lambda: SharedModel(make_model(number), number, 9, {}), BASE)

    ask(0)
    clock.now += 1.9 * DAY
    with pytest.raises(SitsOutError, match="every 2 days"):
        ask(1)
    ask(0)  # the one that was shared, any time
    clock.now -= 1000 * DAY
    with pytest.raises(SitsOutError, match="every 2 days"):
        ask(1)
    clock.now += 1.9 * DAY
    with pytest.raises(SitsOutError, match="every 2 days"):
        ask(1)
    clock.now += 0.2 * DAY
    ask(1)


def test_rounds_are_limited_by_number_and_one_that_gave_nothing_is_none(kit):
    trainer = KeptTrainer()
    site = kit(trainer, max_rounds=3)
    orders = [Order("fed-1", number, "base") for number in range(3)]
    trainer.train = lambda *args, **kwargs: (_ for _ in ()).throw(SitsOutError("waiting for labels"))
    for order in orders:
        assert isinstance(site.ask(order=order, task=TASK_TRAIN), str)
    del trainer.train
    assert isinstance(site.ask(order=orders[0], task=TASK_TRAIN), dict)
    assert isinstance(site.ask(order=orders[1], task=TASK_TRAIN), dict)
    site.restart()
    assert isinstance(site.ask(order=orders[1], task=TASK_TRAIN), dict), "the same round again"
    assert site.ask(order=orders[2], task=TASK_TRAIN) == Reason.ENOUGH_ROUNDS


def share_and_die(folder, moment):
    """Share a model in a process that is killed in the middle."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        site = Sharing(SitePolicy(clip=1.0, noise=1.0, max_shares=1), folder)
        write = site._write

        def write_or_die(ledger):
            if ledger["shares"][-1]["answered"] == (moment == "before the word that it was given"):
                if moment == "before the answer":
                    write(ledger)
                os.kill(os.getpid(), signal.SIGKILL)
            write(ledger)

        site._write = write_or_die
        site.share(lambda: SharedModel({"weight": torch.ones(8)}, 0, 9, {}), {"weight": torch.zeros(8)})
    finally:
        os._exit(0)


@pytest.mark.parametrize("moment", ["before the answer", "before the word that it was given"])
def test_a_kill_between_counting_and_answering_costs_the_share(tmp_path, moment):
    count_a_round(tmp_path)
    assert share_and_die(tmp_path, moment) == -signal.SIGKILL
    sharing = Sharing(SitePolicy(clip=1.0, noise=1.0, max_shares=1), tmp_path)
    base = {"weight": torch.zeros(8)}
    with pytest.raises(SitsOutError, match="1 times"):
        sharing.share(lambda: SharedModel({"weight": torch.full((8,), 2.0)}, 1, 9, {}), base)
    kept = tmp_path / "shares" / "answer.safetensors"
    before = kept.read_bytes() if kept.is_file() else None
    found = sharing.share(lambda: SharedModel({"weight": torch.ones(8)}, 0, 9, {}), base)
    assert before in (None, kept.read_bytes()), "what was made may have left, and is repeated"
    again = sharing.share(lambda: SharedModel({"weight": torch.ones(8)}, 0, 9, {}), base)
    assert hash_weights(found.weights) == hash_weights(again.weights)


@pytest.mark.parametrize("file", ["ledger.json", "answer.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "empty", "halved"])
def test_a_damaged_ledger_or_answer_shares_nothing(tmp_path, file, damage):
    count_a_round(tmp_path)
    sharing = Sharing(SitePolicy(clip=1.0, noise=1.0), tmp_path)
    sharing.share(lambda: SharedModel(MODEL, 0, 9, {}), BASE)
    path = tmp_path / "shares" / file
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "halved" else b"")
    if damage == "gone":
        path.unlink()
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises((ConfigError, WeightsError), match="expected"):
        sharing.share(lambda: SharedModel(MODEL, 0, 9, {}), BASE)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_kit_without_its_policy_shares_nothing(tmp_path):
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "client.crt").touch()
    (tmp_path / "local").mkdir()
    site = AskedKit.__new__(AskedKit)
    site.folder, site.trainer = tmp_path / "local", KeptTrainer()
    site.restart()
    assert isinstance(site.ask(), str) and isinstance(site.ask(task=TASK_TRAIN), str)


def test_epsilon_is_that_of_the_analytic_gaussian_mechanism():
    # Balle and Wang, figure 1: sensitivity 1, so sigma = 2 / mu; the classical bound holds for epsilon below 1.
    for noise, shares in ((8.0, 1), (16.0, 4), (100.0, 9)):
        mu = 2 / noise * math.sqrt(shares)
        epsilon = find_epsilon(noise, shares)
        assert epsilon < mu * math.sqrt(2 * math.log(1.25 / 1e-5)), "tighter than the classical bound"
        zcdp = mu**2 / 2 + mu * math.sqrt(2 * math.log(1e5))
        assert 0.3 * zcdp < epsilon < zcdp, "tighter than by zCDP, and of its order"
    assert find_epsilon(4.0, 4) == pytest.approx(find_epsilon(2.0, 1))
    assert find_epsilon(0.0, 1) == find_epsilon(0.001, 1) == math.inf


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"share_personalized": False}, "keeps its personalized model"),
        ({}, "as it is, without clip or noise"),
        ({"clip": 1.0}, "no differential privacy"),
        ({"clip": 1.0, "noise": 0.001}, "epsilon above 100, no protection a share"),
        ({"clip": 1.0, "noise": 4.0}, "no bound for all shares together"),
        ({"clip": 1.0, "noise": 4.0, "max_shares": 4}, r"epsilon 1\.99 a share, epsilon 4\.38 for max_shares 4"),
    ],
)
def test_an_administrator_reads_what_the_noise_is_worth(policy, words):
    assert re.search(words, describe_sharing(SitePolicy(**policy)))


def test_the_ledger_names_no_federation_and_is_private(kit):
    site = kit(federation="fed-secret")
    site.ask(order=Order("fed-secret", 3, "base"))
    site.ask(order=Order("fed-secret", 3, "base"), task=TASK_TRAIN)
    ledger = site.folder / "shares" / "ledger.json"
    assert "fed-secret" not in ledger.read_text() and ledger.stat().st_mode & 0o77 == 0
    assert set(json.loads(ledger.read_text())) == {"rounds", "last_round", "shares"}
