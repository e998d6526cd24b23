"""What a site sends the server is no event of the server's."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode, ServerCommandNames
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.np.np_downloader import ArrayConsumer
from nvflare.fuel.f3.cellnet import cell
from nvflare.fuel.f3.cellnet.defs import CellChannel, Encoding
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.fuel.f3.streaming.stream_types import BlobSizeError, StreamFuture
from nvflare.widgets import fed_event
from nvflare.widgets.fed_event import FED_EVENT_TOPIC, FedEventHeader, FedEventRunner, ServerFedEventRunner

from fl_bridge import server_process
from fl_bridge.processes import _MODULES, SERVER
from fl_bridge.server_process import ServerJobLauncher


def test_an_event_of_a_site_is_refused_and_never_fired(monkeypatch):
    monkeypatch.setattr(FedEventRunner, "_receive", FedEventRunner._receive)
    monkeypatch.setattr(fed_event.threading, "Thread", None)  # which fires them
    server_process.restrict()
    event = Shareable()
    event.set_header(ReservedHeaderKey.PEER_PROPS, {ReservedKey.IDENTITY_NAME: "south"})
    event.set_header(FedEventHeader.TIMESTAMP, 0.0)
    event.set_header(FedEventHeader.EVENT_TYPE, EventType.FATAL_SYSTEM_ERROR)
    runner = ServerFedEventRunner()
    answer = runner._receive(FED_EVENT_TOPIC, event, FLContext())
    assert answer.get_return_code() == ReturnCode.BAD_REQUEST_DATA and not runner.in_events


def test_a_message_that_cannot_be_read_ends_no_job(monkeypatch):
    monkeypatch.setattr(cell, "_is_server_job_cell", cell._is_server_job_cell)
    monkeypatch.setattr(FedEventRunner, "_receive", FedEventRunner._receive)
    monkeypatch.setattr(ArrayConsumer, "consume_items", ArrayConsumer.consume_items)
    monkeypatch.setattr(cell.os, "_exit", lambda status: pytest.fail("the job of every site ended"))
    server_process.restrict()
    headers = {
        StreamHeaderKey.CHANNEL: CellChannel.SERVER_COMMAND,
        StreamHeaderKey.TOPIC: ServerCommandNames.SUBMIT_UPDATE,
        StreamHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS,
    }
    future = StreamFuture(1, headers)
    future.set_result(b"nothing that FLARE sends")
    receiver = Mock(
        decode_pass_through_channels=(), decode_pass_through_topics=(), get_fobs_context=lambda props: props
    )
    job = Mock(fqcn="server.0d7c1f5e-0000-4000-8000-000000000000")
    with pytest.raises(Exception, match=r"\w"):
        cell.Adapter(Mock(), job, receiver).call(future)
    too_large = StreamFuture(2)
    too_large.set_exception(BlobSizeError("its receiver says so"))
    cell.Adapter(Mock(), job, receiver)._handle_reply_stream_done(too_large)


def test_the_server_and_its_jobs_are_started_so():
    assert _MODULES[SERVER][0] == server_process._MODULE
    context = FLContext()
    arguments = {JobProcessArgs.EXE_MODULE: ("-m", "nvflare.private.fed.app.server.runner_process")}
    context.set_prop(FLContextKey.JOB_PROCESS_ARGS, arguments, private=True, sticky=False)
    command = ServerJobLauncher().get_command({}, context)
    assert command.endswith(f"-m {server_process._MODULE} nvflare.private.fed.app.server.runner_process")
