"""What a site says when something goes wrong: one of a few fixed sentences, whatever its images are called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl_bridge.exchange import BANK_PARAM, REASON_HEADER, TASK_PUBLISH, TASK_SHARE, TASK_TRAIN, to_params
from fl_bridge.trainer import InProcessTrainer
from iopfl.base import errors
from iopfl.base.reasons import Reason, find_reason
from iopfl.core.networks import build_network
from iopfl.core.order import Order, SiteUpdate
from iopfl.core.weights import hash_weights, snapshot

from .kit import Kit
from .recording_filter import describe

STEM = "DOE_JANE_1961-04-12_1.2.826.0.1.3680043.8.498.{}"
TOLD = ("DOE", "JANE", "1961", "3680043")


@pytest.fixture
def site(tmp_path, data, task_file):
    """A site whose images are called like patients, and its kit."""
    folder = data / "north"
    for path in sorted(folder.rglob("case*.png")):
        path.rename(path.with_name(f"{STEM.format(path.stem[-2:])}.png"))
    trainer = InProcessTrainer(str(folder), str(task_file), str(tmp_path / "state" / "JANE DOE"))
    return Kit(tmp_path / "local", trainer, federation="disk-1")


@pytest.fixture
def weights(task):
    return snapshot(build_network(task, seed=0))


def first_image(site):
    return Path(site.trainer.site_folder) / f"{STEM.format('00')}.png"


def first_label(site):
    return first_image(site).parent / "labels" / "final" / first_image(site).name


def every(site, change):
    for path in first_label(site).parent.iterdir():
        change(path)


def state_file(site, name):
    return Path(site.trainer.state_folder) / "disk-1" / name


def block_the_state(site):
    folder = state_file(site, "").parent
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where a folder should be")


def break_the_splits(site):
    listed = {"north": {"train": [first_image(site).stem], "test": first_image(site).stem}}
    (first_image(site).parents[1] / "splits.json").write_text(json.dumps(listed))


PROVOKED = {
    "a damaged image": (lambda site: first_image(site).write_bytes(b"nothing"), Reason.UNREADABLE),
    "an empty image": (lambda site: first_image(site).write_bytes(b""), Reason.UNREADABLE),
    "a damaged label": (lambda site: every(site, lambda path: path.write_bytes(b"x")), Reason.UNREADABLE),
    "a label of another grid": (
        lambda site: every(site, lambda path: Image.fromarray(np.ones((9, 7), np.uint8)).save(path)),
        Reason.UNREADABLE,
    ),
    "a label of other values": (
        lambda site: every(site, lambda path: Image.fromarray(np.full((32, 32), 99, np.uint8)).save(path)),
        Reason.UNREADABLE,
    ),
    "a folder for an image": (
        lambda site: (first_image(site).unlink(), first_image(site).mkdir()),
        None,
    ),
    "too few labels": (lambda site: every(site, lambda path: path.unlink()), Reason.FEW_LABELS),
    "broken splits": (break_the_splits, Reason.UNREADABLE),
    "a state that cannot be written": (block_the_state, Reason.DISK),
    "no task": (lambda site: setattr(site.trainer, "task", f"/tasks/{STEM}.yaml"), Reason.SETTINGS),
    "no site": (lambda site: setattr(site.trainer, "site_folder", f"/sites/{STEM}"), Reason.UNREADABLE),
}


def leaving(reply):
    """Everything of an answer that is text or a name."""
    said = json.dumps(describe(reply))
    assert not [name for name in TOLD if name in said], said
    assert "/" not in reply.get_header(REASON_HEADER, "")
    return reply.get_header(REASON_HEADER)


@pytest.mark.parametrize("what", PROVOKED)
def test_nothing_that_goes_wrong_with_images_tells_their_names(site, weights, what):
    provoke, expected = PROVOKED[what]
    provoke(site)
    order = Order("disk-1", 0, hash_weights(weights))
    said = leaving(site.send(TASK_TRAIN, to_params(weights, integers=False), order.to_meta()))
    if expected is not None:
        assert said == expected
    leaving(site.send(TASK_SHARE, to_params(weights, integers=False), order.to_meta()))


def test_nothing_that_goes_wrong_with_an_order_or_a_state_tells_a_name(site, weights):
    order, params = Order("disk-1", 0, hash_weights(weights)), to_params(weights, integers=False)
    said = {
        "share first": site.send(TASK_SHARE, params, order.to_meta()),
        "no order": site.send(TASK_TRAIN, params, {}),
        "path": site.send(TASK_TRAIN, params, {**order.to_meta(), "federation": "../../JANE"}),
        "other": site.send(TASK_TRAIN, {"weight": np.ones(3, np.float32)}, order.to_meta()),
        "nan": site.send(TASK_TRAIN, {key: value * np.nan for key, value in params.items()}, order.to_meta()),
        "text": site.send(TASK_TRAIN, {"weight": "JANE"}, order.to_meta()),
        "no bank": site.send(TASK_PUBLISH, {"other": np.ones(1)}, order.to_meta()),
        "bank": site.send(TASK_PUBLISH, {BANK_PARAM: np.ones(1, np.uint8)}, order.to_meta()),
    }
    found = {what: leaving(reply) for what, reply in said.items()}
    assert found == {
        "share first": Reason.NO_MODEL,
        "no order": Reason.SETTINGS,
        "path": Reason.SETTINGS,
        "other": Reason.WEIGHTS,
        "nan": Reason.WEIGHTS,
        "text": Reason.WEIGHTS,
        "no bank": Reason.UNEXPECTED,
        "bank": None,
    }
    assert leaving(site.send(TASK_TRAIN, params, order.to_meta())) is None
    for name in ("personalized.safetensors", "local.safetensors"):
        state_file(site, name).write_bytes(b"JANE")
        assert leaving(site.send(TASK_SHARE, params, order.to_meta())) == Reason.WEIGHTS
    (site.folder / "site.yaml").write_text("share_personalized: JANE DOE")
    site.restart()
    assert leaving(site.send(TASK_TRAIN, params, order.to_meta())) == Reason.SETTINGS


class Faulty(InProcessTrainer):
    """Raises what it is given, or answers with it."""

    outcome: object = None

    def train(self, global_weights, order, *, cancelled=lambda: False):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def publish(self, bank):
        return self.outcome


def kinds_of_errors():
    found = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)]
    return [*found, RuntimeError, KeyError, OSError, FileNotFoundError, UnicodeError, RecursionError, MemoryError]


@pytest.mark.parametrize("kind", kinds_of_errors(), ids=lambda kind: kind.__name__)
def test_no_errors_words_leave(site, weights, kind):
    site.trainer.__class__ = Faulty
    site.trainer.outcome = kind(f"cannot read {STEM}")
    order = Order("disk-1", 0, hash_weights(weights))
    said = leaving(site.send(TASK_TRAIN, to_params(weights, integers=False), order.to_meta()))
    assert said in {*Reason} or kind is errors.CancelledError


@pytest.mark.parametrize(
    "update",
    [
        {"metrics": {"JANE": 0.5, "dice": "JANE", "loss": 0.123456789, "seconds": "DOE"}},
        {"samples": "JANE DOE"},
        {"samples": "9", "metrics": "JANE"},
    ],
)
def test_of_an_update_only_counts_and_known_figures_leave(site, weights, update):
    site.trainer.__class__ = Faulty
    site.trainer.outcome = SiteUpdate(weights, **{"samples": 9, "metrics": {}, **update})
    order = Order("disk-1", 0, hash_weights(weights))
    reply = site.send(TASK_TRAIN, to_params(weights, integers=False), order.to_meta())
    leaving(reply)
    site.trainer.outcome = "1-JANE"
    leaving(site.send(TASK_PUBLISH, {BANK_PARAM: np.ones(1, np.uint8)}, order.to_meta()))


def test_what_a_site_says_is_read_as_one_of_the_sentences_or_as_none():
    for reason in Reason:
        assert Reason.read(reason.value) is reason
    for other in ("\x1b[2J", "waiting", None, 7, ["x"], {"a": 1}):
        assert Reason.read(other) is Reason.UNEXPECTED
    assert find_reason(errors.SitsOutError("JANE", reason=Reason.BUSY)) is Reason.BUSY
