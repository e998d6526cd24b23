"""A round through a real label server is the round of the in-process trainer; faults and clinicians in between."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import requests
import torch
import yaml

from fl_bridge.exchange import BANK_PARAM, REASON_HEADER, TASK_PUBLISH, TASK_SHARE, TASK_TRAIN, to_params
from fl_bridge.label_server_trainer import LabelServerTrainer
from fl_bridge.site_policy import SitePolicy
from fl_bridge.trainer import InProcessTrainer
from iopfl.base.digest import content_digest
from iopfl.base.errors import (
    BankError,
    BankTrustError,
    CancelledError,
    ConfigError,
    SitsOutError,
    TrainingError,
)
from iopfl.base.private_files import write_private
from iopfl.base.reasons import Reason
from iopfl.cli.pull import pull_bank
from iopfl.core.bank.bank import Model, ModelBank, Role, save_bank
from iopfl.core.bank.exchange import export_bank
from iopfl.core.bank.signing import Keyring
from iopfl.core.networks import build_network
from iopfl.core.order import Order
from iopfl.core.personalization import PersonalizedModel
from iopfl.core.task import read_task
from iopfl.core.weights import distance, hash_weights, serialize, snapshot
from label_server import PACKAGES, running_server, wait_until

from .conftest import TASK, write_site
from .kit import Kit
from .recording_filter import describe

SLOW = {"local_steps": 600}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site yet without a bank, and its task."""
    folder = tmp_path_factory.mktemp("hospital")
    write_site(folder / "north", images=9, seed=1)
    (folder / "disk.yaml").write_text(TASK)
    return folder


def serving(site, *, task="disk.yaml", state="state"):
    conf = {"bank": site / "bank", "tasks": site / task, "site": "north", "keys": site / "keys", "max_federations": 8}
    return running_server(PACKAGES / "iopfl", site / "north", state=site / state, conf=conf)


@pytest.fixture(scope="module")
def server(site):
    with serving(site) as running:
        yield running


@pytest.fixture(scope="module")
def global_weights(site):
    return snapshot(build_network(read_task(str(site / "disk.yaml")), seed=0))


def order_of(weights, round_index=0, federation="disk-1"):
    return Order(federation, round_index, hash_weights(weights))


def connect(url, task="disk", **settings):
    """A trainer as a site's executor makes it."""
    trainer = LabelServerTrainer(task)
    trainer.configure(SitePolicy(tasks=(task,), label_server=url, patience=60.0, **settings), Path())
    return trainer


def trainings(server):
    return server.get("/train/?all=true").json()


def test_a_round_there_is_the_round_of_the_in_process_trainer(server, site, global_weights, tmp_path):
    here = InProcessTrainer(str(site / "north"), str(site / "disk.yaml"), str(tmp_path / "here"))
    there = connect(server.url)
    weights = global_weights
    for round_index in range(2):
        order = order_of(weights, round_index, "same")
        expected, found = here.train(weights, order), there.train(weights, order)
        assert distance(expected.weights, found.weights) == 0
        assert expected.samples == found.samples
        assert {**expected.metrics, "seconds": 0} == {**found.metrics, "seconds": 0}
        weights = expected.weights
    last = order_of(weights, 1, "same")
    expected, found = here.personalized(weights, last), there.personalized(weights, last)
    assert distance(expected.weights, found.weights) == 0
    assert (expected.round_index, dict(expected.metrics)) == (found.round_index, dict(found.metrics))


def test_a_replay_trains_and_accumulates_once(server, site, global_weights):
    order = order_of(global_weights, 0, "replay")
    first = connect(server.url).train(global_weights, order)
    count = len(trainings(server))
    again = connect(server.url).train(global_weights, order)
    assert len(trainings(server)) == count
    assert distance(first.weights, again.weights) == 0


def test_one_personalized_model_is_answered_once_and_an_earlier_round_not_at_all(server, global_weights):
    there = connect(server.url)
    there.train(global_weights, order_of(global_weights, 1, "once"))
    first = there.personalized(global_weights, order_of(global_weights, 1, "once"))
    moved = {key: value * 1.5 if value.is_floating_point() else value for key, value in global_weights.items()}
    again = there.personalized(moved, order_of(moved, 0, "once"))
    assert hash_weights(first.weights) == hash_weights(again.weights)
    assert dict(first.metrics) == dict(again.metrics), "no scores of other weights on the site's images"
    for weights, round_index in ((moved, 1), (global_weights, 0)):
        with pytest.raises(SitsOutError, match="or a later one before"):
            there.train(weights, order_of(weights, round_index, "once"))


def test_a_site_without_a_bank_says_so_and_serves_the_first_that_comes(server, site, global_weights):
    refused = server.post("/infer/disk?image=case00&output=json", data={"params": "{}"})
    assert refused.status_code == 400 and "no bank of disk yet" in refused.json()["detail"]
    models = [Model("", Role.GLOBAL, 1, 9, {}, global_weights)]
    task = read_task(str(site / "disk.yaml"))
    save_bank(site / "made", models, task=task, federation="disk-1", keys=Keyring(site / "consortium"))
    export_bank(site / "made", site / "made.iopfl")
    content = (site / "made.iopfl").read_bytes()
    with pytest.raises(ConfigError, match="not trusted here"):
        connect(server.url).publish(content)
    Keyring(site / "keys").trust(Keyring(site / "consortium").public_key)
    assert connect(server.url).publish(content).startswith("1-")
    answered = server.post("/infer/disk?image=case00&output=json", data={"params": "{}"})
    assert answered.json()["model"] == "global"
    with pytest.raises(ConfigError, match="expected a whole"):
        connect(server.url).publish(content[: len(content) // 2])


def test_an_outside_site_pulls_the_bank(server, site, tmp_path):
    url = f"{server.url}/iopfl/banks/disk.iopfl"
    with pytest.raises(BankTrustError, match="iopfl bank trust"):
        pull_bank(url, tmp_path / "bank", keys=Keyring(tmp_path / "strangers"))
    assert not (tmp_path / "bank").exists()
    keys = Keyring(site / "keys")
    assert pull_bank(url, tmp_path / "bank", keys=keys)
    assert ModelBank.open(tmp_path / "bank", keys=keys).names == ["global"]
    assert not pull_bank(url, tmp_path / "bank", keys=keys), "nothing new is not downloaded again"
    with pytest.raises(BankError, match="another task"):
        pull_bank(url, tmp_path / "other", keys=keys, task=read_task("vessel"))
    with pytest.raises(ConfigError, match="404 no task 'retina'"):
        pull_bank(url.replace("disk", "retina"), tmp_path / "other", keys=keys)
    with pytest.raises(ConfigError, match="https"):
        pull_bank("http://bank.example/disk.iopfl", tmp_path / "other", keys=keys)
    with pytest.raises(BankError, match="expected a whole"):
        pull_bank(f"{server.url}/openapi.json", tmp_path / "other", keys=keys)
    assert {path.name for path in tmp_path.iterdir()} <= {"bank", "strangers"}, "nothing is left of a failure"


def make_stranger(site, weights):
    """A bank of a signer whom nobody trusts, as one file."""
    models, task = [Model("", Role.GLOBAL, 1, 9, {}, weights)], read_task(str(site / "disk.yaml"))
    save_bank(site / "strange", models, task=task, federation="disk-1", keys=Keyring(site / "stranger"))
    export_bank(site / "strange", site / "strange.iopfl")
    return (site / "strange.iopfl").read_bytes()


def test_a_bank_is_refused_by_its_signer_before_the_rest_of_it_is_kept(server, site, global_weights):
    """A digest is known at the end alone: who hears of the signer instead was refused before."""
    url = f"{server.url}/iopfl/federations/disk/bank"
    digest = {"Content-Digest": content_digest(b"of something else")}
    content = make_stranger(site, global_weights)
    refused = requests.put(url, data=content + bytes(2**24), headers=digest, timeout=60)
    assert (refused.status_code, "not trusted here" in refused.text) == (409, True), refused.text
    Keyring(site / "keys").trust(Keyring(site / "stranger").public_key)
    refused = requests.put(url, data=content + bytes(2**24), headers=digest, timeout=60)
    assert (refused.status_code, "as its manifest lists models" in refused.text) == (409, True), refused.text


def test_a_pulled_bank_without_an_end_ends_at_its_signer(site, global_weights, tmp_path):
    content, sent = make_stranger(site, global_weights), []

    class Endless(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)
            while len(sent) < 256:
                self.wfile.write(bytes(2**20))
                sent.append(1)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as strange:
        threading.Thread(target=strange.serve_forever, daemon=True).start()
        with pytest.raises(BankTrustError, match="iopfl bank trust"):
            pull_bank(
                f"http://127.0.0.1:{strange.server_port}/disk.iopfl", tmp_path / "b", keys=Keyring(tmp_path / "k")
            )
        strange.shutdown()
    assert len(sent) < 64 and not (tmp_path / "b").exists()


def test_what_is_wrong_is_refused_and_named(server, global_weights):
    order = order_of(global_weights, 0, "wrong")
    shorter = dict(list(global_weights.items())[1:])
    with pytest.raises(ConfigError, match="missing"):
        connect(server.url).train(shorter, order)
    with pytest.raises(ConfigError, match="federation id"):
        connect(server.url).train(global_weights, order_of(global_weights, 0, "a b"))
    with pytest.raises(ConfigError, match="no task 'retina'"):
        connect(server.url, "retina").train(global_weights, order)
    url = f"{server.url}/iopfl/federations/disk/wrong/rounds/0/train"
    body, base = serialize(global_weights), {"base_hash": order.base_hash}
    digest = {"Content-Digest": "sha-256=:AAAA:"}
    assert requests.put(f"{url}/global", params=base, data=body, headers=digest, timeout=60).status_code == 400
    assert requests.put(f"{url}/global", params=base, data=body, timeout=60).status_code == 400
    torn = requests.put(
        f"{url}/global", params=base, data=b"x", headers={"Content-Digest": content_digest(b"x")}, timeout=60
    )
    assert torn.json()["detail"].startswith("upload: expected a whole safetensors file"), "no temporary name"
    assert requests.post(url, params=base, json={}, timeout=60).status_code == 400
    assert requests.get(f"{url}/weights", params=base, timeout=60).status_code == 400
    assert server.get("/iopfl/federations/disk/wrong/rounds/0/what?base_hash=x").status_code == 404
    spoofed = server.post("/train/disk", json={"round": {"federation": "disk-1"}})
    assert spoofed.status_code == 400 and "leave it out" in spoofed.json()["detail"]


def test_an_order_is_of_the_address_whatever_its_options_say(server, global_weights):
    order = order_of(global_weights, 0, "disk-1")
    url = f"{server.url}/iopfl/federations/disk/disk-1/rounds/0/train"
    for options in (
        {**order_of(global_weights, 7, "disk-2").to_meta(), "kind": "share"},
        {"kind": "share"},
        {"seed": "1"},
        {"min_new_labels": -1},
        {"min_new_labels": True},
    ):
        answer = requests.post(url, params={"base_hash": order.base_hash}, json=options, timeout=60)
        assert (answer.status_code, "update the bridge" in answer.text) == (400, True), options


def test_weights_that_nothing_will_come_of_are_refused_before_they_are_read(server, site, global_weights):
    """Each federation keeps several sets of weights: their number is limited, and idle ones make room."""

    def put(federation, kind="train", round_index=0):
        url = f"{server.url}/iopfl/federations/disk/{federation}/rounds/{round_index}/{kind}/global"
        base = {"base_hash": hash_weights(global_weights)}
        return requests.put(url, params=base, data=body, headers={"Content-Digest": content_digest(body)}, timeout=60)

    body, folder = serialize(global_weights), site / "state" / "rounds" / "disk"
    refused = put("invented", "share")
    assert (refused.status_code, "no personalized model" in refused.text) == (409, True)
    answers = [put(f"invented-{number}") for number in range(12)]
    assert [answer.status_code for answer in answers][-1] == 409 and "max_federations" in answers[-1].text
    assert len(list(folder.iterdir())) == 8
    for path in [path for invented in folder.glob("invented-*") for path in (*invented.iterdir(), invented)]:
        os.utime(path, (1e9, 1e9))
    trained = [path.name for path in folder.iterdir() if (path / "local.safetensors").exists()]
    assert put("later").ok and {path.name for path in folder.iterdir()} == {*trained, "later"}
    shutil.rmtree(folder / "later")


def make_bodies(weights):
    """What a changed bridge may send as global weights, each with the digest that it has."""
    first, *others = weights
    good, header = serialize(weights), {key: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for key in weights}
    value = weights[first]
    listed = [
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 4]}},
        {"__metadata__": {"order": "[" * 1000}, **header},
        {"__metadata__": {"order": 7}, **header},
        {"__metadata__": 7},
        [],
        "x",
    ]
    texts = [json.dumps(values).encode() for values in listed]
    changed = [
        {**weights, first: value * torch.nan},
        {**weights, first: value + torch.inf},
        {**weights, first: value.double()},
        {**weights, first: value.half()},
        {**weights, first: value.bool()},
        {**weights, first: value[:0]},
        {**weights, first: value[None]},
        {**weights, "\x1b[2J": value.clone()},
        {key: weights[key] for key in others},
        {},
    ]
    return [
        *map(serialize, changed),
        *(len(text).to_bytes(8, "little") + text + bytes(4) for text in texts),
        *((size).to_bytes(8, "little") + b"{}" for size in (0, 2, 3, 2**31, 2**63, 2**64 - 1)),
        *(good[:length] for length in (0, 1, 7, 8, 9, len(good) // 2, len(good) - 1)),
        good + b"x",
        b"PK\x05\x06" + bytes(18),
        pickle.dumps({"a": 1}),
    ]


OPTIONS = [
    *("", "null", "[]", "7", "NaN", "{", "[" * 5000, '{"seed": NaN}', '{"seed": 1e400}', '{"seed": "1"}'),
    *('{"min_new_labels": -1}', '{"proximal_weight": Infinity}', '{"seed": 99999999999999999999}', '{"order": {}}'),
    *('{"kind": "share"}', '{"device": "cuda"}', '{"seed": [1]}', '{"\x00": 1}'),
]


def test_what_a_changed_bridge_sends_to_the_rounds_is_refused_and_leaves_nothing(server, site, global_weights):
    url = f"{server.url}/iopfl/federations/disk"
    order = order_of(global_weights, 0, "changed")
    base = {"base_hash": order.base_hash}
    found = {}

    def ask(method, path, data=b"", **options):
        digest = {"Content-Digest": content_digest(data)} if isinstance(data, bytes) else {}
        answer = requests.request(method, f"{url}{path}", data=data, headers=digest, timeout=60, **options)
        assert 400 <= answer.status_code < 500, (method, path, answer.status_code, data[:80], answer.text[:200])
        assert str(site) not in answer.text and "Traceback" not in answer.text and len(answer.text) < 2000, answer.text
        found[method, path, data] = answer.status_code

    for kind in ("train", "share"):
        for body in make_bodies(global_weights):
            ask("PUT", f"/changed/rounds/0/{kind}/global", body, params=base)
    for body in [*make_bodies(global_weights)[-12:], serialize(global_weights)]:
        ask("PUT", "/bank", body)
    for text in OPTIONS:
        ask("POST", "/changed/rounds/0/train", text.encode("utf-8", "surrogatepass"), params=base)
    for number in ("-1", "x", "1e3", "0x1", str(10**30), "%00"):
        ask("PUT", f"/changed/rounds/{number}/train/global", serialize(global_weights), params=base)
    for query in ({}, {"base_hash": ""}, {"base_hash": "a/b"}, {"base_hash": "x" * 1000}):
        ask("PUT", "/changed/rounds/0/train/global", serialize(global_weights), params=query)
    assert len(found) > 60
    assert not (site / "state" / "rounds" / "disk" / "changed").exists()
    assert server.get("/info/").ok


def test_a_site_takes_part_in_the_federations_that_its_administrator_named(tmp_path):
    from iopfl.base.errors import FederationsError
    from iopfl.lib.federations import check_federation

    check_federation(tmp_path, "one", known=("one",), limit=1)
    with pytest.raises(FederationsError, match="administrator sets which"):
        check_federation(tmp_path, "two", known=("one",), limit=9)


def test_what_goes_wrong_at_a_label_server_tells_the_federation_no_name(server, site, global_weights, tmp_path):
    params, order = to_params(global_weights, integers=False), order_of(global_weights, 0, "told")
    images = {path: path.read_bytes() for path in (site / "north").glob("case*.png")}

    def told(trainer, task=TASK_TRAIN, params=params, order=order, url=server.url):
        agreed = {"federation": order.federation, "tasks": (trainer.task,)}
        kit = Kit(tmp_path, trainer, label_server=url, patience=60.0 if url == server.url else 0.1, **agreed)
        reply = kit.send(task, params, order.to_meta())
        said = json.dumps(describe(reply))
        assert "case0" not in said and str(site) not in said and url not in said
        return Reason(reply.get_header(REASON_HEADER))

    for image in images:
        image.write_bytes(b"nothing")
    try:
        assert told(LabelServerTrainer("disk")) == Reason.UNREADABLE
    finally:
        for image, content in images.items():
            image.write_bytes(content)
    assert told(LabelServerTrainer("disk"), TASK_SHARE) == Reason.NO_MODEL
    other = {"params": {"weight": np.ones(3, np.float32)}, "order": order_of(global_weights, 0, "told-other")}
    assert told(LabelServerTrainer("disk"), **other) == Reason.REFUSED
    assert told(LabelServerTrainer("case00")) == Reason.REFUSED
    bank = {BANK_PARAM: np.ones(9, np.uint8)}
    assert told(LabelServerTrainer("disk"), TASK_PUBLISH, bank) == Reason.REFUSED
    assert told(LabelServerTrainer("disk"), url="http://127.0.0.1:9") == Reason.AWAY


def test_a_site_waits_for_new_labels(server, site, global_weights):
    connect(server.url).train(global_weights, order_of(global_weights, 0, "new"))
    with pytest.raises(SitsOutError, match=r"waiting for new labels \(0 of 2\)"):
        connect(server.url, min_new_labels=2).train(global_weights, order_of(global_weights, 1, "new"))
    last = server.get("/iopfl/federations/disk").json()["federations"]
    waiting = next(state for state in last if state["federation"] == "new")
    assert (waiting["status"], waiting["reason"]) == ("sits out", "waiting for new labels (0 of 2)")
    assert waiting["says"] == Reason.NO_NEW_LABELS, "how few there are is the site's to tell"
    assert trainings(server)[-1]["status"] == "DONE", "sitting out is no failure"


@pytest.fixture(scope="module")
def slow(site):
    """A task whose round takes long enough to be disturbed, and a server that is restarted in the middle of one."""
    settings = yaml.safe_load(TASK)
    settings["training"].update(SLOW)
    (site / "slow.yaml").write_text(json.dumps({**settings, "name": "slow"}))
    return site


def follow(trainer, weights, order, cancelled=lambda: False):
    """Train in a thread; gives the thread and what will be its outcome."""
    outcome = []

    def run():
        try:
            outcome.append(trainer.train(weights, order, cancelled=cancelled))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def await_step(server, order):
    url = f"/iopfl/federations/slow/{order.federation}/rounds/{order.round_index}/train?base_hash={order.base_hash}"
    return wait_until(lambda: server.get(url).json().get("progress", {}).get("step"), 60, what="a first step")


def test_clinicians_restarts_and_cancellation_in_the_middle_of_a_round(slow, global_weights):
    order = order_of(global_weights)
    bank = {"bank": slow / "slow-bank", "tasks": slow / "slow.yaml", "site": "north", "keys": slow / "keys"}
    arguments = {"state": slow / "slow-state", "conf": bank}
    port = None
    with running_server(PACKAGES / "iopfl", slow / "north", **arguments) as server:
        port = server.url.rsplit(":", 1)[1]
        trainer = connect(server.url, "slow")
        stopping = threading.Event()
        thread, outcome = follow(trainer, global_weights, order, stopping.is_set)
        await_step(server, order)
        stopping.set()
        thread.join(30)
        assert isinstance(outcome[0], CancelledError)
        assert trainings(server)[-1]["status"] == "STOPPED"

        thread, outcome = follow(trainer, global_weights, order)
        await_step(server, order)
        clinicians = server.post("/train/slow", json={"epochs": 1})
        assert clinicians.ok, "a clinician gets the slot from a round"
        wait_until(
            lambda: any(t["id"] == clinicians.json()["id"] and t["status"] == "ERROR" for t in trainings(server)),
            60,
            what="the clinician's training, which ends as there is no bank yet",
        )
        await_step(server, order)
    with running_server(PACKAGES / "iopfl", slow / "north", **arguments, args=["--port", port]) as server:
        thread.join(120)
        assert not thread.is_alive()
        assert not isinstance(outcome[0], Exception), outcome[0]
        folder = slow / "slow-state" / "rounds" / "slow" / order.federation
        assert PersonalizedModel.load(folder / "personalized.safetensors").round_index == 0
        assert distance(PersonalizedModel.load(folder / "personalized.safetensors").weights, outcome[0].weights) == 0


def test_a_server_that_is_away_is_an_error_after_the_patience(global_weights):
    trainer = LabelServerTrainer("disk")
    trainer.configure(SitePolicy(tasks=("disk",), label_server="http://127.0.0.1:9", patience=0.5), Path())
    started = time.monotonic()
    with pytest.raises(TrainingError, match="does not answer"):
        trainer.train(global_weights, order_of(global_weights))
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("task", ["../../train/disk?x=", "disk/../..", "", "disk#", "a b"])
def test_a_jobs_names_lead_to_no_other_address(server, global_weights, task):
    before = trainings(server)
    with pytest.raises(ConfigError, match="a task of letters"):
        connect(server.url, task).train(global_weights, order_of(global_weights))
    with pytest.raises(ConfigError, match="a task of letters"):
        connect(server.url, task).publish(b"")
    assert trainings(server) == before


@pytest.mark.parametrize(
    ("federation", "round_index", "base_hash"),
    [
        ("../../train", 0, "x"),
        ("disk-1?x=", 0, "x"),
        ("disk-1", -1, "x"),
        ("disk-1", 10**30, "x"),
        ("disk-1", 0, "x&y=1"),
        ("d" * 81, 0, "x"),
    ],
)
def test_an_orders_names_are_names(server, federation, round_index, base_hash):
    values = {"federation": federation, "round_index": round_index, "base_hash": base_hash}
    with pytest.raises(ConfigError, match="expected a"):
        Order.from_meta(values)
    url = f"/iopfl/federations/disk/{quote(federation, safe='')}/rounds/{round_index}/train"
    assert server.get(url, params={"base_hash": base_hash}).status_code in (400, 404), "the label server checks too"


def test_no_proxy_of_the_environment_gets_weights_or_token(server, site, global_weights, tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login other password other")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    order = order_of(global_weights, 0, "direct")
    assert connect(server.url).train(global_weights, order).samples
    with pytest.raises(ConfigError, match="404"):  # it was reached
        pull_bank(f"{server.url}/iopfl/banks/retina.iopfl", tmp_path / "bank", keys=Keyring(site / "keys"))


def test_a_redirect_is_not_followed_with_the_token(global_weights, tmp_path):
    asked = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    write_private(tmp_path / "token", b"a-token")
    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        trainer = LabelServerTrainer("disk")
        url = f"http://127.0.0.1:{other.server_port}"
        trainer.configure(SitePolicy(tasks=("disk",), label_server=url, token_file="token", patience=1.0), tmp_path)
        with pytest.raises(ConfigError, match="correct label_server"):
            trainer.train(global_weights, order_of(global_weights))
        with pytest.raises(ConfigError, match="answers 307"):
            pull_bank(f"{url}/iopfl/banks/disk.iopfl", tmp_path / "bank", keys=Keyring(tmp_path / "keys"))
        other.shutdown()
    assert not any("elsewhere" in path for path, _ in asked) and asked[0][1] == "Bearer a-token"
