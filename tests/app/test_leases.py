"""A case lent to one annotator is not offered to another until the lease ends or a label comes."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta

import nibabel as nib
import numpy as np
import pytest

from iopfl.base.errors import ConfigError, LeaseError
from iopfl.labels.leases import LeaseStore

from .site import APP, GLAND, conf_of, make_site_bank, oblique_affine, write_scans

UNDATED = b'[{"image": "case02", "annotator": "ann", "until": "soon"}]'
UNLABELED = ["case02", "case03", "case04"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    from iopfl.compat import apply_tasks

    apply_tasks()
    folder = tmp_path_factory.mktemp("leases")
    write_scans(folder / "site_a", labeled=2, unlabeled=3)
    make_site_bank(folder / "bank", GLAND)
    return folder


@pytest.fixture
def start(home, tmp_path):
    """Open the app, as a server does when it starts."""
    from iopfl.app import IOPFLApp
    from iopfl.core.bank.bank import ModelBank
    from iopfl.core.bank.signing import Keyring

    bank = ModelBank.open(home / "bank", keys=Keyring(home / "keys"))

    def start(**conf: str):
        values = {key: str(value) for key, value in conf_of(bank).items()}
        return IOPFLApp(str(APP), str(home / "site_a"), {**values, "state": str(tmp_path), **conf})

    return start


def ask(app, annotator: str, strategy: str = "random") -> str:
    return app.next_sample({"strategy": strategy, "client_id": annotator})["id"]


@pytest.mark.parametrize("strategy", ["random", "gland_disagreement"])
def test_nobody_is_offered_what_somebody_else_has(start, strategy):
    app = start()
    offered = [ask(app, name, strategy) for name in ("ann", "bob", "eve")]
    assert sorted(offered) == UNLABELED
    with pytest.raises(LeaseError, match="all 3 images without a label are lent to others, for 30 minutes each"):
        ask(app, "joe", strategy)


def test_who_asks_again_gets_another_and_at_the_end_their_own_again(start):
    app = start()
    assert sorted(ask(app, "ann") for _ in range(3)) == UNLABELED
    assert ask(app, "ann") in UNLABELED
    with pytest.raises(LeaseError):
        ask(app, "bob")


def test_leases_outlive_the_server_and_end(start, tmp_path):
    app = start(lease_minutes="5")
    lent = ask(app, "ann")
    assert ask(start(), "bob") != lent
    file = next(tmp_path.glob("labels/*/leases.json"))
    kept = json.loads(file.read_text())
    until = datetime.fromisoformat(next(lease["until"] for lease in kept if lease["image"] == lent))
    assert timedelta(minutes=4) < until - datetime.now(UTC) < timedelta(minutes=6)
    file.write_text(json.dumps([{**lease, "until": datetime.now(UTC).isoformat()} for lease in kept]))
    again = start()
    assert not again.leases.active()
    assert sorted(ask(again, "bob") for _ in range(3)) == UNLABELED


def test_a_label_ends_its_images_lease(start, home, tmp_path):
    app = start()
    lent = ask(app, "ann")
    nib.save(nib.Nifti1Image(np.full((28, 36, 5), 2, np.uint8), oblique_affine()), tmp_path / "drawn.nii.gz")
    app.datastore().save_label(lent, str(tmp_path / "drawn.nii.gz"), "original", {})
    app.on_save_label(lent, lent)
    assert app.leases.find(lent), "not a final label: it is still being drawn"
    app.datastore().save_label(lent, str(tmp_path / "drawn.nii.gz"), "final", {"client_id": "ann"})
    app.on_save_label(lent, lent)
    assert app.leases.find(lent) is None
    assert sorted(ask(app, name) for name in ("ann", "bob")) == sorted(set(UNLABELED) - {lent})
    app.datastore().remove_label(lent, "final")
    app.datastore().remove_label(lent, "original")
    assert ask(app, "joe") == lent


def test_without_an_unlabeled_image_there_is_nothing_to_offer(start, tmp_path):
    app = start()
    app._datastore.get_unlabeled_images = lambda *_: []
    assert app.next_sample({"strategy": "random"}) == {}
    with pytest.raises(ConfigError, match="no strategy 'nope'"):
        app.next_sample({"strategy": "nope"})


def test_many_at_once_never_get_the_same(start):
    app = start()
    offered, ready = [], threading.Barrier(6)

    def work(name: str) -> None:
        ready.wait()
        try:
            offered.append(ask(app, name))
        except LeaseError:
            offered.append("")

    threads = [threading.Thread(target=work, args=(f"annotator{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(offered) == ["", "", "", *UNLABELED]


@pytest.mark.parametrize("content", [b"{", b"[1]", b'[{"image": "case02"}]', UNDATED])
def test_a_file_of_leases_that_cannot_be_read_lends_nothing(start, tmp_path, content):
    start()
    folder = next(tmp_path.glob("labels/*"), None) or tmp_path / "labels" / start()._labels.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "leases.json").write_bytes(content)
    assert start().leases.active() == []


def test_a_lease_ends_in_its_time_whatever_the_clock_was_when_it_began(tmp_path):
    until = datetime.now(UTC) + timedelta(days=400)
    path = tmp_path / "leases.json"
    path.write_text(json.dumps([{"image": "case02", "annotator": "ann", "until": until.isoformat()}]))
    (lease,) = LeaseStore(path, minutes=30).active()
    assert datetime.fromisoformat(lease.until) <= datetime.now(UTC) + timedelta(minutes=30)


def test_a_lease_that_cannot_be_written_down_refuses_no_label(tmp_path, monkeypatch):
    leases = LeaseStore(tmp_path / "leases.json", minutes=30)
    assert leases.lend("case02", "ann")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("iopfl.labels.leases.write_bytes", full)
    leases.end("case02")
    assert leases.active() == []


@pytest.mark.parametrize("value", ["0", "-3", "soon", "inf", "nan"])
def test_minutes_that_cannot_be_are_refused(start, value):
    with pytest.raises(ConfigError, match="lease_minutes: expected a number above 0"):
        start(lease_minutes=value)
