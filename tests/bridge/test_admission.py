"""A site takes the jobs of `fl-bridge run`, and no others, whatever server and job say."""

from __future__ import annotations

import copy
import importlib
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.fl_constant import ReservedTopic
from nvflare.fuel.f3.cellnet.defs import CellChannel, MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.message import Message as CellMessage
from nvflare.private.admin_defs import Message
from nvflare.private.defs import ERROR_MSG_PREFIX, RequestHeader
from nvflare.private.fed.client.admin_commands import AdminCommands
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.private.fed.client.training_cmds import AbortAppProcessor, DeployProcessor

from fl_bridge import site_process
from fl_bridge.admission import CONFIGURATION, check_configuration, check_job, check_job_id
from fl_bridge.controller import RoundController
from fl_bridge.job import JobOptions, build_job
from fl_bridge.kit_policy import DEQUANTIZER, QUANTIZER, TRAINER
from fl_bridge.label_server_trainer import LabelServerTrainer
from fl_bridge.site_process import SiteRequest
from iopfl.base.errors import ConfigError

JOB_ID = "eaa3c845-1189-4d84-b6b6-dcebfd724820"


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """A site's part of a job as `fl-bridge run` submits it."""
    folder = tmp_path_factory.mktemp("job")
    controller = RoundController(2, str(folder / "bank"), str(folder / "keys"), total_rounds=2)
    trainer = LabelServerTrainer("vessel", seed=7, proximal_weight=0.1)
    job = build_job(
        controller, state=folder, trainers={"north": trainer}, name="retina", options=JobOptions(update_percentile=20)
    )
    job.export_job(str(folder))
    return folder / "retina" / "app_north"


@pytest.fixture
def configuration(job) -> dict:
    return json.loads((job / CONFIGURATION).read_text())


def pack(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def test_a_job_of_fl_bridge_run_is_taken(job, configuration):
    check_job(pack({CONFIGURATION: (job / CONFIGURATION).read_bytes(), ".__nvfl_sig.json": b"{}"}))
    chain = {"tasks": ["train", "share_personalized"]}
    quantized = [{**chain, "filters": [{"path": QUANTIZER, "args": {"quantization_type": "float16"}}]}]
    check_configuration({**configuration, "task_result_filters": quantized})
    check_configuration({**configuration, "task_data_filters": [{**chain, "filters": [{"path": DEQUANTIZER}]}]})


def test_a_job_calls_its_classes_as_every_site_of_0_1_knows_them(configuration):
    """Hospitals bring their software up to date when they can: a module that moved must not end a federation."""
    executor = configuration["executors"][0]["executor"]["path"]
    trainer = configuration["components"][0]["path"]
    assert executor.split(".") == ["fl_bridge", "executor", "SiteExecutor"]
    assert trainer.split(".") == ["fl_bridge", "label_server", "LabelServerTrainer"]
    module, _, name = trainer.rpartition(".")
    assert getattr(importlib.import_module(module), name) is LabelServerTrainer


def with_component(**component):
    return lambda values: values["components"].append({"id": "trainer", "args": {}, **component})


def with_argument(name, value):
    return lambda values: values["components"][0]["args"].update({name: value})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (with_component(path="fl_bridge.trainer.InProcessTrainer", args={"site_folder": "/etc"}), "a class that"),
        (with_component(path="fl_bridge.persistor.FederationPersistor", args={"state": "/srv"}), "a class that"),
        (with_component(path="subprocess.Popen", args={"args": ["id"]}), "a class that"),
        (with_component(class_path="os.system"), "other parts"),
        (with_component(name="Popen"), "other parts"),
        (with_component(path=TRAINER, config_type="dict"), "other parts"),
        (with_component(path=TRAINER, id="another", args={"task": "vessel"}), "another component"),
        (with_argument("task", "../../train/prostate?x="), "site's own"),
        (with_argument("task", {"path": "os.system", "args": {"command": "id"}}), "site's own"),
        (with_argument("label_server", "https://elsewhere"), "site's own"),
        (with_argument("class_attributes", {}), "site's own"),
        (with_argument("proximal_weight", float("nan")), "site's own"),
        (with_argument("seed", True), "site's own"),
        (lambda values: values["executors"].append(values["executors"][0]), "more executors"),
        (lambda values: values["executors"][0].update(executor={"path": "fl_bridge.executor.X"}), "a class that"),
        (lambda values: values["executors"][0].update(tasks=["*", "_internal"]), "tasks that no round"),
        (lambda values: values.update(handlers=[]), "other parts"),
        (lambda values: values.update({"@vars": {}}), "other parts"),
        (lambda values: values.update(format_version=3), "other parts"),
        (lambda values: values["task_result_filters"][0]["filters"][0].update(path=TRAINER), "a class that"),
        (lambda values: values["task_result_filters"][0].update(direction="inout"), "other parts"),
        (lambda values: values.update(components={"path": TRAINER}), "other parts"),
    ],
)  # fmt: skip
def test_what_a_round_does_not_need_is_refused(configuration, change, why):
    values = copy.deepcopy(configuration)
    change(values)
    with pytest.raises(ConfigError, match=why):
        check_configuration(values)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"custom/theirs.py": b""}, "code of its own"),
        ({"custom/": b""}, "code of its own"),
        ({"config/config_fed_client.conf": b""}, "other files"),
        ({"config/theirs.py": b""}, "other files"),
        ({"../../local/site.yaml": b""}, "other files"),
        ({CONFIGURATION: b"{"}, "no JSON"),
        ({CONFIGURATION: b"[" * 60000}, "no whole zip"),
        ({CONFIGURATION: bytes(2**20)}, "more than"),
    ],
)
def test_other_files_than_the_one_are_refused(job, files, why):
    with pytest.raises(ConfigError, match=why):
        check_job(pack({CONFIGURATION: (job / CONFIGURATION).read_bytes(), **files}))
    with pytest.raises(ConfigError, match="no whole zip"):
        check_job(b"PK")


@pytest.mark.parametrize("job_id", ["local", "startup", "..", "", None, f"{JOB_ID}/..", 7])
def test_a_jobs_id_is_no_folder_of_the_kit(job_id, tmp_path):
    with pytest.raises(ConfigError):
        check_job_id(job_id)
    message = Message("train.deploy", b"")
    message.set_header(RequestHeader.JOB_ID, job_id)
    assert SiteRequest(DeployProcessor()).process(message, None).body.startswith(ERROR_MSG_PREFIX)


def test_what_goes_wrong_at_a_site_stays_there(caplog):
    """Where FLARE would say which folder it was."""

    class Failing(AbortAppProcessor):
        def process(self, req, app_ctx):
            raise RuntimeError("/srv/iopfl/kits/north is full")

    message = Message("train.abort", None)
    message.set_header(RequestHeader.JOB_ID, JOB_ID)
    assert "/srv" not in str(SiteRequest(Failing()).process(message, None).body)
    assert "/srv/iopfl/kits/north is full" in caplog.text


def test_a_site_answers_what_a_run_needs_and_nothing_else(monkeypatch):
    processors, commands = list(ClientRequestProcessors.request_processors), list(AdminCommands.commands)
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", processors)
    monkeypatch.setattr(AdminCommands, "commands", commands)
    for name in ("Cell", "NetAgent"):
        monkeypatch.setattr(site_process.fed_client_base, name, getattr(site_process.fed_client_base, name))
    site_process.restrict()
    assert {topic for processor in processors for topic in processor.get_topics()} == {
        "train.deploy", "train.start_job", "train.abort", "train.notify_job_status", "scheduler.check_resource",
        "scheduler.cancel_resource",
    }  # fmt: skip
    assert {command.get_command_name() for command in commands} == {"abort", "check_status", "shutdown"}


@pytest.mark.parametrize("topic", ["fed.event", "ObjectStreamer.Request", "RELIABLE.REQUEST", "", None])
def test_a_jobs_process_hears_of_its_run_alone(topic):
    heard = []
    cell = SimpleNamespace(_register_request_cb=lambda channel, topic, cb: heard.append(cb))
    site_process._SiteCell.register_request_cb(
        cell, channel=CellChannel.AUX_COMMUNICATION, topic="*", cb=lambda _: "ok"
    )
    (answer,) = heard
    assert answer(CellMessage({MessageHeaderKey.TOPIC: ReservedTopic.END_RUN})) == "ok"
    refused = answer(CellMessage({MessageHeaderKey.TOPIC: topic}))
    assert refused.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.INVALID_REQUEST
