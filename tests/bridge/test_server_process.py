"""What a site sends the server is no event of the server's."""

from __future__ import annotations

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
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


def test_the_server_and_its_jobs_are_started_so():
    assert _MODULES[SERVER][0] == server_process._MODULE
    context = FLContext()
    arguments = {JobProcessArgs.EXE_MODULE: ("-m", "nvflare.private.fed.app.server.runner_process")}
    context.set_prop(FLContextKey.JOB_PROCESS_ARGS, arguments, private=True, sticky=False)
    command = ServerJobLauncher().get_command({}, context)
    assert command.endswith(f"-m {server_process._MODULE} nvflare.private.fed.app.server.runner_process")
