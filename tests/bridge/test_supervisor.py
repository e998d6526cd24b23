"""A run goes on past faults, but not for ever where sites end job after job."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from nvflare.apis.job_launcher_spec import JobReturnCode
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys, JobFailureMsgKey

from fl_bridge import supervisor
from fl_bridge.federation_file import read_federation
from fl_bridge.kit_policy import MARK
from fl_bridge.provision import provision
from fl_bridge.server_kit import STATE, note_failed_job, read_failed_job, read_settings
from fl_bridge.server_process import _noting
from iopfl.base.errors import TrainingError

FEDERATION = """
name: bounded
task: vessel
server: {host: localhost, port: 8002}
rounds: 2
sites:
  north: {share_personalized: true}
  south: {share_personalized: true}
"""
JOB, OTHER = "0d7c1f5e-0000-4000-8000-000000000000", "0d7c1f5e-0000-4000-8000-000000000001"


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounded")
    (folder / "federation.yaml").write_text(FEDERATION)
    provision(read_federation(folder / "federation.yaml"), folder / "kits")
    return folder / "kits" / "server"


def run(kit, monkeypatch, ends):
    """Run a federation whose jobs end so; gives how many there were, and why it gave up."""
    jobs = iter(ends)
    monkeypatch.setattr(supervisor, "_wait", lambda kit, seconds: None)
    monkeypatch.setattr(supervisor, "_run_job", lambda *arguments: next(jobs))
    with pytest.raises((TrainingError, StopIteration)) as caught:
        supervisor.run(kit)
    return len(ends) - len(list(jobs)), str(caught.value)


def test_sites_that_end_job_after_job_are_named_after_so_many(kit, monkeypatch):
    failed = supervisor._Ended("job 1 ended: south reported that its part failed", ("south",))
    away = supervisor._Ended("FLARE's server does not answer")
    most = supervisor._MAX_FAILED_JOBS
    count, why = run(kit, monkeypatch, [failed] * 100)
    assert count == most and "south" in why and "fl-bridge run goes on" in why and "north" not in why
    count, _ = run(kit, monkeypatch, [away] * 100)
    assert count == 100, "a server that is away is waited for"
    count, why = run(kit, monkeypatch, [failed, away] * 50)
    assert count == 2 * most - 1 and "south" in why


def test_a_round_that_was_done_begins_the_count_anew(kit, monkeypatch):
    failed = supervisor._Ended("job 1 ended", ("south",))
    blamed = [failed] * (supervisor._MAX_FAILED_JOBS - 1)
    state = SimpleNamespace(rounds_done=0, shared=None, failure=None, folder=kit / STATE)
    follower = Mock(look=lambda: state, __enter__=lambda self: self, __exit__=lambda *arguments: None)
    jobs = iter([*blamed, "round", *blamed, "end"])

    def go_on(*arguments):
        ended = next(jobs)
        if isinstance(ended, str):
            state.rounds_done += 1
            state.shared = {"rounds_done": 2} if ended == "end" else None
        return failed

    monkeypatch.setattr(supervisor, "open_state", lambda kit: state)
    monkeypatch.setattr(supervisor, "Follower", lambda *arguments: follower)
    monkeypatch.setattr(supervisor, "_wait", lambda kit, seconds: None)
    monkeypatch.setattr(supervisor, "_run_job", go_on)
    assert supervisor.run(kit).rounds_done == 2


def test_the_site_whose_word_ended_a_job_is_noted_at_the_server(kit, monkeypatch):
    monkeypatch.setenv(MARK, str(kit))
    (kit / STATE).mkdir(exist_ok=True)
    pending = {(JOB, "south"), (JOB, "north"), ("../x", "south")}
    server = Mock()
    server.client_manager.clients = {"t1": SimpleNamespace(name="south"), "t2": SimpleNamespace(name="north")}
    server.engine.job_runner.is_client_outcome_pending = lambda job, client: (job, client) in pending

    def report(token, job, code):
        payload = {JobFailureMsgKey.JOB_ID: job, JobFailureMsgKey.CODE: code}
        return _noting(lambda server, request: "FLARE's")(
            server, Message({CellMessageHeaderKeys.TOKEN: token}, payload if job else b"")
        )

    for token, job, code in (
        ("t1", JOB, JobReturnCode.SUCCESS),
        ("stranger", JOB, JobReturnCode.EXCEPTION),
        ("t1", OTHER, JobReturnCode.EXCEPTION),
        ("t1", "../x", JobReturnCode.EXCEPTION),
        ("t1", None, None),
    ):
        assert report(token, job, code) == "FLARE's"
    assert read_failed_job(kit, JOB) is read_failed_job(kit, OTHER) is read_failed_job(kit, "../x") is None
    report("t1", JOB, JobReturnCode.EXCEPTION)
    report("t2", JOB, JobReturnCode.ABORTED)
    assert read_failed_job(kit, JOB) == "south", "north's was ended with it"
    ended = supervisor._describe_end(kit, JOB, read_settings(kit), (), "FINISHED")
    assert ended.sites == ("south",) and "south reported that its part failed" in ended.problem
    note_failed_job(kit, OTHER, "north")
    assert read_failed_job(kit, OTHER) == "north"


def test_sites_that_a_job_did_not_get_to_are_found_in_what_flare_notes():
    clients = {"north": "north", "client-2": "ISBI_1.5"}
    details = ["server: OK", "north: OK", "client-2: NVFLARE_ERROR: expected a job", "num_ok_sites 1 < 2", 7]
    assert supervisor._find_refusing({"job_deploy_detail": details}, clients) == ("ISBI_1.5",)
    assert supervisor._find_refusing({"job_deploy_detail": None}, clients) == ()
