"""Whole federations, in FLARE's simulator."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Client, Listener
from pathlib import Path

import psutil
import pytest
import torch
from nvflare.private.fed.app.simulator.simulator_runner import SimulatorClientRunner

from fl_bridge.aggregation import aggregate
from fl_bridge.cli import main
from fl_bridge.describing import describe_site
from fl_bridge.job import JobOptions
from fl_bridge.persistor import FederationState
from fl_bridge.simulate import run_federation, simulate
from fl_bridge.simulator_process import reserve_ports
from fl_bridge.trainer import InProcessTrainer
from iopfl.base.errors import ConfigError, DatasetError, TrainingError
from iopfl.base.locks import try_hold
from iopfl.base.reasons import Reason
from iopfl.core.bank.bank import ModelBank, Role
from iopfl.core.bank.signing import Keyring
from iopfl.core.order import Order
from iopfl.core.task import read_task
from iopfl.core.weights import distance, read_weights

from .conftest import SITES, write_site

ROUNDS = 3
INSIDE = SITES[:2]


@pytest.fixture
def arguments(data, task_file, tmp_path):
    """A command line; the state folder's name has a blank in it."""
    return [
        *("simulate", "--data", str(data), "--task", str(task_file), "--outside", SITES[2], "--rounds", str(ROUNDS)),
        *("--out", str(tmp_path / "the bank"), "--keys", str(tmp_path / "keys"), "--seed", "3", "--json"),
    ]


def start(arguments):
    """The command in a process of its own."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "fl_bridge.cli", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_round(state, process):
    """All that descends from the process when the first round is done."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if (state / "federation.json").is_file() and FederationState.open(state).rounds_done >= 1:
            return psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.02)
    raise AssertionError(process.communicate(timeout=10))


def compute_without_flare(state, data, task_file, folder):
    """The same federation by a plain loop: final global weights, and the trainers."""
    trainers = {site: InProcessTrainer(str(data / site), str(task_file), str(folder / site), seed=3) for site in INSIDE}
    weights = FederationState.create(folder, task=read_task(task_file), clients={}, seed=3).read_global()
    for round_index in range(ROUNDS):
        order = Order(state.federation, round_index, str(round_index))
        updates = {site: trainers[site].train(weights, order) for site in INSIDE}
        # Differences travel. A bias before a batch normalization has only rounding for a gradient, and Adam makes
        # steps of it: without the same rounding here, such biases would differ, and nothing else.
        start, samples = weights, {site: update.samples for site, update in updates.items()}
        weights = aggregate(
            start, samples, lambda site, key, u=updates, w=start: u[site].weights[key] - w[key], how="weighted_average"
        )
    order = Order(state.federation, ROUNDS - 1, "end")
    return weights, {site: trainer.personalized(weights, order) for site, trainer in trainers.items()}


@pytest.mark.long
def test_killed_after_a_round_it_goes_on_to_the_same_weights_and_a_bank(arguments, data, task_file, tmp_path):
    state = tmp_path / "the bank.state"
    process = start(arguments)
    family = wait_for_round(state, process)
    simulator = next(child for child in family if "fl_bridge.simulator_process" in child.cmdline())
    os.killpg(simulator.pid, signal.SIGKILL)
    output, log = process.communicate(timeout=60)
    assert process.returncode == 2, log
    assert output == "" and "run the same command again to go on" in log
    assert not psutil.wait_procs(family, timeout=10)[1]
    reached = FederationState.open(state).rounds_done
    assert 1 <= reached < ROUNDS

    process = start(arguments)
    output, log = process.communicate(timeout=200)
    assert process.returncode == 0, log
    assert f"going on after round {reached}/{ROUNDS}" in log and f"round {ROUNDS}/{ROUNDS}  north" in log
    done = json.loads(output)
    assert done["inside"] == list(INSIDE) and done["outside"] == [SITES[2]]

    record = FederationState.open(state)
    assert [entry["round_index"] for entry in record.rounds] == list(range(ROUNDS))
    bank = ModelBank.open(tmp_path / "the bank", task=read_task(task_file), keys=Keyring(tmp_path / "keys"))
    assert bank.names == ["global", *INSIDE]
    assert bank.manifest.federation == record.federation == done["federation"]

    weights, personalized = compute_without_flare(record, data, task_file, tmp_path / "plain")
    found = record.read_global()
    for key, value in weights.items():
        if value.is_floating_point():  # counters never leave a site
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6)
    for entry, expert in zip(bank.manifest.entries, bank.experts, strict=True):
        expected = weights if entry.role is Role.GLOBAL else personalized[entry.site].weights
        for key, value in expected.items():
            if value.is_floating_point():
                torch.testing.assert_close(expert[key], value, rtol=1e-6, atol=1e-6)
        if entry.role is Role.PERSONALIZED:
            assert entry.round_index == ROUNDS - 1 and entry.samples == personalized[entry.site].samples
            assert set(entry.metrics) == {"dice", "dice_global", "dice_local"}

    # Complete, the same command does nothing but say so; fewer rounds, other sites or another seed are refused.
    version = bank.manifest.version
    began = time.monotonic()
    again = simulate(
        data,
        read_task(task_file),
        outside=[SITES[2]],
        rounds=ROUNDS,
        bank=tmp_path / "the bank",
        seed=3,
        keys=tmp_path / "keys",
        progress=None,
    )
    assert (again.version, again.rounds) == (version, ROUNDS) and time.monotonic() - began < 10
    for change, message in (
        ({"seed": 4}, "another seed"),
        ({"outside": ["north"]}, "another sites"),
        ({"rounds": 1}, "has 3 rounds already"),
    ):
        options = {"outside": [SITES[2]], "rounds": ROUNDS, "seed": 3, **change}
        with pytest.raises(ConfigError, match=f"{message}.*start anew"):
            simulate(data, read_task(task_file), bank=tmp_path / "the bank", progress=None, **options)


def test_a_bad_update_is_refused_by_name_and_the_round_goes_on(data, task_file, tmp_path, monkeypatch):
    here = str(Path(__file__).parent)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", here)
    from faulty_site import FAULTS, FaultyFilter, FaultyTrainer

    write_site(data / "new", images=6, seed=5, labels=2)
    folder = tmp_path / "state"
    task = read_task(task_file)
    clients = {"north-1": "north", "south-2": "south", "new-3": "new"}
    FederationState.create(folder, task=task, clients=clients, seed=0)
    trainers = {
        client: (FaultyTrainer if site == "south" else InProcessTrainer)(
            str(data / site), str(task_file), str(folder / "sites" / client)
        )
        for client, site in clients.items()
    }
    run_federation(
        folder,
        trainers,
        rounds=len(FAULTS),
        bank=tmp_path / "bank",
        keys=tmp_path / "keys",
        packages=("fl_bridge", "faulty_site"),
        weight_limit=0.5,
        options=JobOptions(result_filters=(FaultyFilter("south-2"),)),
    )
    state = FederationState.open(folder)
    fates = [record["sites"] for record in state.rounds]
    assert [fate["north"]["status"] for fate in fates] == ["averaged"] * len(FAULTS)
    south = dict(zip(FAULTS, (fate["south"] for fate in fates), strict=True))
    said = {
        "NaN": "NaN",
        "thousandfold": "norm",
        "shape": "expected (4, 1, 3, 3)",
        "missing": "missing",
        "stale": "stale",
    }
    for fault, word in said.items():
        assert south[fault]["status"] == "refused" and word in south[fault]["reason"], (fault, south[fault])
    boast = south["boast"]
    assert (boast["status"], boast["weight"], boast["capped_from"]) == ("averaged", 0.5, 1.0)
    assert "weight 0.50, capped: 1.00 by its count" in describe_site(boast)
    assert fates[FAULTS.index("boast")]["north"]["weight"] == 0.5
    assert south["raises"]["status"] == "failed"
    assert south["raises"]["reason"] == Reason.UNEXPECTED
    assert {fate["new"]["status"] for fate in fates} == {"sat out"}
    assert fates[0]["new"]["reason"] == Reason.FEW_LABELS
    assert state.shared["sites"]["new"]["status"] == "sat out"
    bank = ModelBank.open(tmp_path / "bank")
    assert bank.names == ["global", "north", "south"]
    # With everyone else refused, the local model is the global one.
    north, _ = read_weights(folder / "sites" / "north-1" / state.federation / "local.safetensors")
    assert distance(north, bank.experts[0]) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--outside", "nowhere"], "no site nowhere"),
        (["--outside", "north"], "needs two sites inside"),
        (["--rounds", "0"], "at least one round"),
        (["--task", "spleen"], "no task 'spleen'"),
        (["--data", "no/such"], "no folder no/such"),
    ],
)
def test_bad_input_is_one_plain_line_and_status_2(arguments, change, message, capsys):
    assert main([*arguments, *change]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("fl-bridge: ") and message in captured.err


def test_the_port_of_a_clients_process_is_its_alone():
    # FLARE asks by this name, and its client's process listens seconds later.
    assert "get_open_ports" in SimulatorClientRunner.do_one_task.__code__.co_names
    (port,) = reserve_ports(1)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("", port))
    with (
        Listener(("localhost", port)) as listener,
        Client(("localhost", port)) as client,
        listener.accept() as accepted,
    ):
        client.send("a round")
        assert accepted.recv() == "a round"


def test_sites_without_labels_are_counted(data, task, tmp_path):
    write_site(tmp_path / "few" / "a", images=6, seed=0, labels=1)
    write_site(tmp_path / "few" / "b", images=6, seed=1)
    with pytest.raises(DatasetError, match=r"there are: a [01], b \d"):
        simulate(tmp_path / "few", task, outside=[], rounds=1, bank=tmp_path / "bank")


def test_a_state_in_use_is_not_shared(data, task, tmp_path):
    folder = tmp_path / "state"
    FederationState.create(folder, task=task, clients={"a": "north"}, seed=0)
    with try_hold(folder / "lock"), pytest.raises(ConfigError, match="another run"):
        run_federation(folder, {}, rounds=1, bank=tmp_path / "bank", keys=tmp_path / "keys")


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", "--help"])
    assert stopped.value.code == 0 and "fl-bridge simulate --data" in capsys.readouterr().out


@pytest.mark.long
def test_sigterm_stops_everything(arguments, tmp_path):
    process = start(arguments)
    family = wait_for_round(tmp_path / "the bank.state", process)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on where it stopped" in log
    assert not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.long
def test_a_lost_client_and_a_lost_parent_stop_everything(arguments, tmp_path):
    process = start(arguments)
    family = wait_for_round(tmp_path / "the bank.state", process)
    next(child for child in family if "simulator_worker" in " ".join(child.cmdline())).kill()
    _, log = process.communicate(timeout=60)
    assert process.returncode == 2 and "run the same command again" in log
    assert not psutil.wait_procs(family, timeout=10)[1]

    process = start([*arguments, "--rounds", "30"])
    time.sleep(0.1)
    family = wait_for_round(tmp_path / "the bank.state", process)
    while not any("simulator_worker" in " ".join(child.cmdline()) for child in family):
        time.sleep(0.5)
        family = psutil.Process(process.pid).children(recursive=True)
    simulator = next(child for child in family if "fl_bridge.simulator_process" in child.cmdline())
    scratch = Path(simulator.cmdline()[3]).parent
    assert scratch.is_dir()
    process.kill()
    process.communicate(timeout=60)
    assert not psutil.wait_procs(family, timeout=20)[1]
    assert not scratch.exists()


@pytest.mark.long
def test_a_round_that_nobody_can_train_says_why(data, task_file, tmp_path):
    folder = tmp_path / "state"
    FederationState.create(folder, task=read_task(task_file), clients={"new-1": "new"}, seed=0)
    write_site(data / "new", images=6, seed=5, labels=1)
    trainer = InProcessTrainer(str(data / "new"), str(task_file), str(folder / "sites" / "new-1"))
    with pytest.raises(
        TrainingError, match=r"0 usable update\(s\), 1 needed: new sat out: waiting for labels: it has fewer"
    ):
        run_federation(folder, {"new-1": trainer}, rounds=1, bank=tmp_path / "bank", keys=tmp_path / "keys")
