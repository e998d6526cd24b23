"""A running site under a server that was changed: it runs no code, shows no file, and takes its own jobs alone."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from nvflare.fuel.flare_api.flare_api import new_secure_session

from fl_bridge.controller import RoundController
from fl_bridge.federation_file import read_federation
from fl_bridge.job import build_job
from fl_bridge.label_server_trainer import LabelServerTrainer
from fl_bridge.provision import provision
from fl_bridge.server_kit import ADMIN
from fl_bridge.trainer import InProcessTrainer
from label_server import start_process, stop_process, wait_until

from .hostile_server import ROLES
from .hostile_site import EVENTS
from .production import BRIDGE, PATH, free_port

FEDERATION = """
name: hostile
task: vessel
server: {{host: localhost, port: {port}}}
rounds: 2
sites:
  north: {{share_personalized: true, label_server: "http://127.0.0.1:9"}}
  south: {{share_personalized: true}}
"""
SECRET = "what opens the label server"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Kits, and a file in north's that is nobody else's."""
    home = tmp_path_factory.mktemp("hostile")
    (home / "federation.yaml").write_text(FEDERATION.format(port=free_port()))
    provision(read_federation(home / "federation.yaml"), home / "kits")
    (home / "kits" / "north" / "local" / "token.txt").write_text(SECRET)
    return home


@contextmanager
def running(home, *command):
    """The consortium's people at their server, once north is connected."""
    server, tests = home / "kits" / "server", Path(__file__).parents[1]
    env = {"PYTHONPATH": os.pathsep.join([PATH, str(tests)])}
    with ExitStack() as stack:
        for name, started in (("server", command), ("site", [*BRIDGE, "site", str(home / "kits" / "north")])):
            stack.callback(stop_process, start_process(started, home / f"{name}.log", env=env))
        wait_until(lambda: "Successfully registered" in (home / "site.log").read_text(), 120, what="north to connect")
        session = new_secure_session(ADMIN, str(server / "admin"), timeout=30.0)
        stack.callback(session.close)
        wait_until(session.get_connected_client_list, 60, what="north at the server")
        yield session


@contextmanager
def hostile_site(home, name):
    """A site's side that was changed; its log."""
    kit, log = home / "kits" / name, home / f"{name}.log"
    settings = ["secure_train=true", f"uid={name}", "org=consortium", "config_folder=config"]
    command = [sys.executable, "-m", "bridge.hostile_site", "-m", str(kit), "-s", "fed_client.json", "--set", *settings]
    env = {"PYTHONPATH": os.pathsep.join([PATH, str(Path(__file__).parents[1])])}
    process = start_process(command, log, env=env)
    try:
        yield log
    finally:
        stop_process(process)


def test_the_kits_own_policy_lets_nobody_look_around_or_take_a_job_along(home):
    with (
        running(home, *BRIDGE, "server", str(home / "kits" / "server")) as session,
        hostile_site(home, "south") as log,
    ):
        wait_until(lambda: log.read_text().count("answer to") >= len(EVENTS), 60, what="south to send its events")
        assert ": OK" not in "".join(line for line in log.read_text().splitlines() if "answer to" in line)
        status, _ = submit(session, home, "honest", LabelServerTrainer("vessel"), add_code)
        assert status == "FINISHED:FAILED_TO_RUN"
        (job,) = (path.name for path in (home / "kits" / "server" / "flare" / "jobs").iterdir())
        of_a_job = [f"clone_job {job}", f"download_job {job}", f"delete_job {job}"]
        for command in (*of_a_job, "list_jobs", "ls server", "pwd north", "sys_info client north"):
            answer = str(session.api.do_command(command))
            # The server refuses what its own policy does not have, the site what it has not.
            assert "not authorized" in answer or "invalid_request" in answer, (command, answer)


@pytest.fixture(scope="module")
def session(home):
    server = home / "kits" / "server"
    settings = ["secure_train=true", "org=consortium", "config_folder=config"]
    command = ["-m", "bridge.hostile_server", "-m", str(server), "-s", "fed_server.json", "--set", *settings]
    with running(home, sys.executable, *command) as session:
        yield session


def submit(session, home, name, trainer, change=lambda folder: None):
    """Submit a job; gives how it ended, and what north said when it was to take it."""
    state = home / name
    state.mkdir()
    controller = RoundController(1, str(state / "bank"), str(state / "keys"), total_rounds=1)
    job = build_job(controller, state=state, trainers={"north": trainer}, name=name)
    job.export_job(str(state / "job"))
    change(state / "job" / name)
    job_id = session.submit_job(str(state / "job" / name))
    ended = wait_until(lambda: find_end(session, job_id), 60, what=f"the end of job {name}")
    detail = " ".join(ended.get("job_deploy_detail") or [])
    return ended["status"], detail


def find_end(session, job_id):
    meta = session.get_job_meta(job_id)
    return meta if meta["status"].startswith("FINISHED") else None


def add_code(folder):
    custom = folder / "app_north" / "custom"
    custom.mkdir(parents=True)
    (custom / "theirs.py").write_text("open('/tmp/never', 'w')")


def name_a_class(path, **arguments):
    def change(folder):
        file = folder / "app_north" / "config" / "config_fed_client.json"
        values = json.loads(file.read_text())
        values["components"].append({"id": "more", "path": path, "args": arguments})
        file.write_text(json.dumps(values))

    return change


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("code", add_code, "code of its own is not run here"),
        ("listed", name_a_class("nvflare.app_common.np.np_trainer.NPTrainer"), "a class that a site does not run"),
        ("system", name_a_class("os.system", command="true"), "a class that a site does not run"),
    ],
)
def test_a_job_with_more_than_a_round_needs_is_refused_at_the_site(session, home, name, change, why):
    status, detail = submit(session, home, name, LabelServerTrainer("vessel"), change)
    assert status == "FINISHED:FAILED_TO_RUN"
    assert "north: " in detail and why in detail
    assert str(home) not in detail, "no path of a site leaves it"


def test_a_job_cannot_train_past_the_sites_own_settings(session, home):
    status, detail = submit(session, home, "folder", InProcessTrainer("/etc", "vessel", str(home / "theirs")))
    assert status == "FINISHED:FAILED_TO_RUN" and "a class that a site does not run" in detail


@pytest.mark.parametrize(
    "command",
    [
        "pwd north",
        "ls north -al local",
        "cat north local/token.txt",
        "head north local/token.txt",
        "tail north local/token.txt",
        "grep north opens local/token.txt",
        "sys_info client north",
        "report_env north",
        "report_resources client north",
        "configure_site_log client north DEBUG",
        "show_scopes client north",
        "process_info north",
        "show_config_vars north",
        "peers north",
        "restart client north",
        "shutdown client north",
    ],
)
def test_a_command_finds_nothing_at_the_site(session, home, command):
    answer = json.dumps([session.api.do_command(command) for _ in ROLES], default=str)
    for told in (SECRET, str(home), "authorization.json", "percent", "MainThread", "retry_timeout"):
        assert told not in answer, answer
    assert session.get_connected_client_list(), "it goes on"
