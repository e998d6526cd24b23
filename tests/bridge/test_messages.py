"""What a changed server or a hostile peer puts into FLARE's messages: refused, bounded, and never the other's end."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.decomposers import numpy_decomposers
from nvflare.app_common.np.np_downloader import ArrayConsumer, ArrayDownloadable
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.fuel.utils import fobs
from nvflare.private.fed.utils.fed_utils import fobs_initialize

from fl_bridge import server_process, site_process
from fl_bridge.checking import read_answer
from fl_bridge.controller import RoundController, _Asked
from fl_bridge.exchange import REASON_HEADER, TASK_SHARE, TASK_TRAIN, to_params
from fl_bridge.kit_policy import MARK
from fl_bridge.messages import limit_messages
from fl_bridge.site_policy import SitePolicy
from fl_bridge.trainer import InProcessTrainer
from iopfl.base.errors import WeightsError
from iopfl.base.reasons import Reason
from iopfl.core.networks import build_network
from iopfl.core.order import Order
from iopfl.core.weights import floating, hash_weights, snapshot

from .kit import FEDERATION, Kit
from .production import PATH

SPOILT = {
    "NaN": lambda value: value * np.float32(np.nan),
    "infinity": lambda value: np.full_like(value, -np.inf),
    "almost infinity": lambda value: np.full_like(value, 3e38),
    "double": lambda value: value.astype(np.float64),
    "half": lambda value: value.astype(np.float16),
    "whole numbers": lambda value: value.astype(np.int64),
    "complex": lambda value: value.astype(np.complex64),
    "truth": lambda value: value > 0,
    "other bytes": lambda value: value.astype(">f4"),
    "text": lambda value: "a" * 100,
    "a list": lambda value: value.tolist(),
    "a ragged list": lambda value: [[1.0], [1.0, 2.0]],
    "a name": lambda value: {"more": value},
    "a set": lambda value: {1, 2},
    "nothing": lambda value: None,
    "a number": lambda value: 7,
    "empty": lambda value: value[:0],
    "flat": lambda value: value.reshape(-1),
    "another axis": lambda value: value[None],
    "huge": lambda value: np.zeros((2**11, 2**11), np.float32),
}


@pytest.fixture(scope="module", autouse=True)
def _serialization():
    fobs_initialize()
    numpy_decomposers.register()


@pytest.fixture
def weights(task):
    return snapshot(build_network(task, seed=0))


def travel(params, meta):
    """A message as it arrives: through FLARE's own conversion and serialization."""
    sent = FLModelUtils.to_shareable(FLModel(params_type=ParamsType.DIFF, params=params, meta=meta))
    return fobs.loads(fobs.dumps(sent, max_value_size=2**31))


def spoil(params, how):
    key = next(name for name, value in params.items() if value.ndim > 1)
    match how:
        case "missing":
            return {name: value for name, value in params.items() if name != key}
        case "extra":
            return {**params, "\x1b[2J" * 50: params[key]}
        case "none":
            return {}
        case "other names":
            return dict(enumerate(params.values()))
    return {**params, key: SPOILT[how](params[key])}


HOW = [*SPOILT, "missing", "extra", "none", "other names"]


@pytest.mark.parametrize("how", HOW)
def test_a_site_refuses_global_weights_that_are_none_and_keeps_nothing_of_them(how, weights, data, task_file, tmp_path):
    trainer = InProcessTrainer(str(data / "north"), str(task_file), str(tmp_path / "state"))
    kit = Kit(tmp_path / "local", trainer)
    message = travel(spoil(to_params(weights, integers=False), how), Order(FEDERATION, 0, "base").to_meta())
    said = [kit.answer(task, message).get_header(REASON_HEADER) for task in (TASK_TRAIN, TASK_SHARE)]
    assert said[0] == (Reason.TRAINING if how == "almost infinity" else Reason.WEIGHTS)
    assert said[1] in (Reason.NO_MODEL, Reason.WEIGHTS)
    assert not list(tmp_path.glob("state/**/*.safetensors"))


@pytest.mark.parametrize("how", HOW)
def test_the_consortium_refuses_an_update_that_is_none_by_name(how, weights):
    order = Order(FEDERATION, 0, hash_weights(weights))
    difference = {key: value * 0.01 for key, value in to_params(weights, integers=False).items()}
    meta = {**order.to_meta(), "samples": 9, "metrics": {}}
    read = {"norm_limit": 100.0, "what": "update"}
    read_answer(FLModelUtils.from_shareable(travel(difference, meta)), order, floating(weights), **read)
    model = FLModelUtils.from_shareable(travel(spoil(difference, how), meta))
    with pytest.raises(WeightsError):
        read_answer(model, order, floating(weights), **read)


def test_an_answer_that_cannot_be_read_at_all_is_its_sites_fault_and_nobody_elses(monkeypatch, task, tmp_path):
    controller = RoundController(1, str(tmp_path / "bank"), str(tmp_path / "keys"), min_sites=1)
    controller._clients = {"north": "north", "south": "south"}
    controller.engine = type("Engine", (), {"get_clients": lambda self: []})()
    said = []

    def accept(site, model):
        if site == "south":
            raise RuntimeError("an error that nobody thought of")
        said.append(site)

    def broadcast(task, **options):
        for client in ("south", "north"):
            task(FLModel(params={}, meta={"client_name": client}))

    controller.engine.get_clients = lambda: [type("Client", (), {"name": name}) for name in controller._clients]
    monkeypatch.setattr(controller, "_prepare_task", lambda data, task_name, timeout, callback: callback)
    monkeypatch.setattr(controller, "broadcast_and_wait", broadcast)
    monkeypatch.setattr(controller, "set_fl_context", lambda data: None)
    monkeypatch.setattr(controller, "exception", lambda text: None)
    controller.fl_ctx = controller.abort_signal = None
    asked = _Asked(accept)
    controller._ask(TASK_TRAIN, FLModel(params={}), asked)
    assert said == ["north"]
    assert asked.fates == {"south": {"status": "refused", "reason": "its answer cannot be read"}}


@pytest.fixture
def limit(monkeypatch):
    """Messages of a process with a limit in bytes."""

    def limit(size):
        monkeypatch.setattr(ArrayConsumer, "consume_items", CONSUME)
        limit_messages(lambda: size)

    monkeypatch.setattr(ArrayConsumer, "consume_items", CONSUME)
    return limit


CONSUME = ArrayConsumer.consume_items


def pack(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def test_what_flare_sends_arrives_whole_within_the_limit(limit, weights):
    limit(2**20)
    sent = to_params(weights, integers=False)
    items = ArrayDownloadable(sent, 2**21)
    consumer = ArrayConsumer(None, {})
    for index in range(len(sent)):
        consumer.consume("ref", {}, [items.produce_item(index)])
    assert consumer.result.keys() - {"allow_pickle"} == sent.keys(), "FLARE calls an array so by mistake"
    assert all(np.array_equal(consumer.result[key], value) for key, value in sent.items())


def test_a_stream_without_an_end_ends_at_the_limit(limit):
    limit(10 * 2**20)
    consumer, piece, taken = ArrayConsumer(None, {}), pack(a=np.zeros(2**18, np.float32)), 0
    with pytest.raises(WeightsError, match="at most 10485760 bytes"):
        while taken < 100:
            consumer.consume("ref", {}, [piece])
            taken += 1
    assert taken == 9


def lying(content, size):
    """A zip file whose entry says that it is larger."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = archive.infolist()[0]
    return content.replace(entry.file_size.to_bytes(4, "little"), size.to_bytes(4, "little"))


def make_bombs():
    zeros = np.zeros(2**24, np.float32)
    listed = io.BytesIO()
    with zipfile.ZipFile(listed, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", bytes(2**24))
    return {
        "packed": pack(np.savez_compressed, a=zeros),
        "packed by bzip2": listed.getvalue(),
        "lying": lying(pack(a=np.zeros(99, np.float32)), 2**31),
        "no zip": b"x" * 1000,
        "text": "x" * 1000,
    }


@pytest.mark.parametrize("how", ["packed", "packed by bzip2", "lying", "no zip", "text"])
def test_a_piece_that_unpacks_to_more_is_refused_before_it_is_unpacked(limit, monkeypatch, how):
    limit(2**30)
    bomb = make_bombs()[how]
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(WeightsError, match="expected"):
        ArrayConsumer(None, {}).consume("ref", {}, [bomb])


MEASURE = """
import resource, sys
from nvflare.app_common.np.np_downloader import ArrayConsumer
from fl_bridge import server_process, site_process
{restrict}.restrict()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    ArrayConsumer(None, {{}}).consume("ref", {{}}, [sys.stdin.buffer.read()])
except Exception as error:
    print(type(error).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000)
"""


@pytest.mark.parametrize("restrict", ["server_process", "site_process"])
def test_flares_processes_are_bounded_so(restrict):
    bomb = pack(np.savez_compressed, a=np.zeros(2**25, np.float32))
    assert len(bomb) < 2**18, "128 MB in a quarter of one"
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(restrict=restrict)],
        input=bomb,
        env={**os.environ, "PYTHONPATH": PATH},
        capture_output=True,
        timeout=120,
    )
    assert done.stdout.decode().split() == ["WeightsError", "True"], done.stderr.decode()[-500:]


def test_the_limits_are_those_of_the_global_weights_and_of_the_sites_own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv(MARK, str(tmp_path))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "global-000003.safetensors").write_bytes(bytes(2**20))
    assert server_process._find_limit() == 2 * 2**20 + 64 * 2**20
    for megabytes, expected in ((7, 7 * 2**20), (0, 2**60)):
        SitePolicy(max_message_mb=megabytes).write(tmp_path / "local")
        assert site_process._find_limit()() == expected
