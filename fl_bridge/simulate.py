"""A whole federation on one machine, in FLARE's simulator, with production's classes.

The simulator runs in processes of its own, with its run directory in a
temporary folder. All that counts is in the state folder: this module starts
the simulator, follows the state, and stops the simulator when the bank is there.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil
import yaml

from fl_bridge.controller import RoundController
from fl_bridge.job import PACKAGES, JobOptions, build_job, flare_text, write_simulator_policy
from fl_bridge.persistor import FederationState
from fl_bridge.process_tree import end_tree
from fl_bridge.progress import Follower
from fl_bridge.record import RECORD
from fl_bridge.trainer import InProcessTrainer, SiteTrainer
from iopfl.base.errors import BankError, ConfigError, DatasetError, TrainingError
from iopfl.base.files import Scratch, sweep
from iopfl.base.locks import try_hold
from iopfl.core.bank.bank import ModelBank
from iopfl.core.bank.signing import default_keys
from iopfl.core.round_files import LOCAL
from iopfl.core.sites import find_cases, find_sites, labeled, split_cases
from iopfl.core.task import Task

LOG = "flare.log"
_POLL_SECONDS = 0.25
_FATAL = re.compile(r"Subprocess died for client|Communication error with client|run_client_thread error")
"""A client process is gone. FLARE would wait for it until the round's timeout."""


@dataclass(frozen=True)
class Simulation:
    """A finished simulation.

    Attributes:
        bank: its folder.
        version: the version of the bank that was written.
        federation: id of the federation.
        rounds: rounds done, those of earlier runs included.
        inside: sites that trained.
        outside: sites that were left out.
        sites: what each inside site shared: `status`, and `samples`, `dice`, `dice_global`, `dice_local` or a `reason`.
        local_models: inside site -> file with its weights after the last round's local steps.
        seconds: wall time of this run.
    """

    bank: Path
    version: int
    federation: str
    rounds: int
    inside: tuple[str, ...]
    outside: tuple[str, ...]
    sites: Mapping[str, Mapping[str, Any]]
    local_models: Mapping[str, Path]
    seconds: float


def simulate(
    data: Path,
    task: Task,
    *,
    outside: Sequence[str],
    rounds: int,
    bank: Path,
    seed: int = 0,
    state: Path | None = None,
    keys: Path | None = None,
    device: str = "cpu",
    threads: int = 2,
    progress: TextIO | None = sys.stderr,
) -> Simulation:
    """Train a federation of the sites in a folder, and make its bank.

    Interrupted, it goes on where it stopped when called again with the same
    arguments; with more rounds it goes on from those it has. The same seed
    and data give the same weights.

    Args:
        data: a folder of site folders.
        task: what to segment.
        outside: sites that take no part.
        rounds: in all.
        bank: folder of the bank; a new version is added to one that exists.
        seed: the seed of initial weights and of training.
        state: state folder; None = `<bank>.state` beside the bank.
        keys: folder of the signing keys; None = the user's own.
        device: where sites train.
        threads: sites that train at once, each on one core.
        progress: where progress bar and round lines go; None = nowhere.

    Raises:
        ConfigError: an unknown site, fewer than two inside, or a state of another federation.
        DatasetError: no images, or too few labels at all but one of the sites.
        TrainingError: a round did not succeed, or FLARE stopped; says how to go on.
    """
    started = time.monotonic()
    if rounds < 1 or threads < 1:
        raise ConfigError(f"expected at least one round and one thread, given {rounds} and {threads}")
    inside = _choose_inside(data, task, outside)
    folder = state or bank.absolute().parent / f"{bank.absolute().name}.state"
    federation = _open_state(folder, task, inside, seed)
    if federation.rounds_done > rounds:
        there = f"{folder} has {federation.rounds_done} rounds already, {rounds} asked for"
        raise ConfigError(f"{there}: ask for more, or {_anew(folder)}")
    trainers: dict[str, SiteTrainer] = {
        client: InProcessTrainer(
            flare_text(data / site),
            flare_text(folder / "task.yaml"),
            flare_text(folder / "sites" / client),
            device=device,
            seed=seed,
            turns=flare_text(folder / "turns"),
            at_once=threads,
        )
        for client, site in federation.clients.items()
    }
    if not _is_complete(federation, bank, rounds):
        run_federation(folder, trainers, rounds=rounds, bank=bank, keys=keys or default_keys(), progress=progress)
        federation = FederationState.open(folder)
    shared = federation.shared or {}
    return Simulation(
        bank=bank,
        version=shared["bank_version"],
        federation=federation.federation,
        rounds=federation.rounds_done,
        inside=tuple(inside),
        outside=tuple(outside),
        sites=shared["sites"],
        local_models={
            site: folder / "sites" / client / federation.federation / LOCAL
            for client, site in federation.clients.items()
        },
        seconds=round(time.monotonic() - started, 3),
    )


def run_federation(
    state: Path,
    trainers: Mapping[str, SiteTrainer],
    *,
    rounds: int,
    bank: Path,
    keys: Path,
    min_sites: int = 1,
    packages: Sequence[str] = PACKAGES,
    aggregation: str = "weighted_average",
    weight_limit: float = 1.0,
    options: JobOptions | None = None,
    progress: TextIO | None = None,
) -> None:
    """Run a federation, whose state exists, to a number of rounds in the simulator.

    Args:
        state: its state folder.
        trainers: FLARE client name -> what trains there.
        rounds: in all.
        bank: folder of the bank.
        keys: folder of the signing keys.
        min_sites: updates that a round needs.
        packages: installed packages that trainers come from.
        aggregation: one of `aggregation.AGGREGATIONS`.
        weight_limit: as in `RoundController`; 1 = sample counts are believed, as they are counted on this machine.
        options: what FLARE's own parts add.
        progress: as in `simulate`.

    Raises:
        ConfigError: another run has the state.
        TrainingError: a round did not succeed, or FLARE stopped.
    """
    controller = RoundController(
        rounds,
        flare_text(bank),
        flare_text(keys),
        min_sites=min_sites,
        aggregation=aggregation,
        weight_limit=weight_limit,
    )
    with (
        try_hold(state / "lock") as lock,
        Scratch(Path(tempfile.gettempdir(), "fl-bridge")) as scratch,
    ):
        if lock is None:
            raise ConfigError(f"{state}: another run is using it: wait for that one, or give another state folder")
        sweep(state, deep=True)
        sweep(Path(tempfile.gettempdir()))
        FederationState.open(state).note_failure(None)
        job = build_job(controller, state=state, trainers=trainers, packages=packages, options=options)
        job.export_job(str(scratch))
        write_simulator_policy(scratch / "workspace" / "local", packages=packages)
        with (state / LOG).open("ab") as log:
            start = log.tell()
            with _start(scratch, list(trainers), lock, log) as process:
                _follow(process, state, rounds=rounds, log=Path(log.name), log_start=start, progress=progress)


@contextlib.contextmanager
def _start(scratch: Path, clients: Sequence[str], lock: int, log: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start the simulator in a process group of its own; nothing of it is left afterwards."""
    number = str(len(clients))
    command = [
        sys.executable,
        "-m",
        "fl_bridge.simulator_process",
        str(scratch / "iopfl"),
        "-w",
        str(scratch / "workspace"),
    ]
    command += ["-c", ",".join(clients), "-n", number, "-t", number, "--parent", str(os.getpid())]
    temporary = scratch / "tmp"
    temporary.mkdir()
    path = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "TMPDIR": str(temporary),
    }
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,
        pass_fds=[lock],  # held until the simulator is gone too
    )
    try:
        yield process
    finally:
        end_tree(process.pid)
        process.wait()


def _follow(
    process: subprocess.Popen[bytes], state: Path, *, rounds: int, log: Path, log_start: int, progress: TextIO | None
) -> None:
    """Show progress until the bank is there; end clients that outlive a killed simulator."""
    family: dict[int, psutil.Process] = {}
    try:
        with Follower(state, rounds, progress) as follower:
            while True:
                running = process.poll() is None
                record = follower.look()
                if record.failure:
                    raise TrainingError(f"{record.failure}; run the same command again to go on")
                if record.shared and record.shared["rounds_done"] == rounds:
                    return
                lost = _find_fatal(log, log_start)
                if not running or lost:
                    raise TrainingError(
                        f"FLARE stopped (exit status {process.poll()}) after {record.rounds_done} of {rounds} rounds: "
                        f"{lost or _first_error(log, log_start)}; run the same command again to go on; its log is {log}"
                    )
                with contextlib.suppress(psutil.NoSuchProcess):
                    family.update({child.pid: child for child in psutil.Process(process.pid).children(recursive=True)})
                time.sleep(_POLL_SECONDS)
    finally:
        for child in family.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()  # psutil compares the start time: never a stranger with the same id


def _choose_inside(data: Path, task: Task, outside: Sequence[str]) -> list[str]:
    sites = find_sites(data)
    unknown = sorted(set(outside) - set(sites))
    if unknown:
        raise ConfigError(f"no site {', '.join(unknown)} in {data}: there are {', '.join(sites)}")
    inside = [site for site in sites if site not in outside]
    if len(inside) < 2:
        there = ", ".join(inside) or "none"
        raise ConfigError(f"a federation needs two sites inside, there is {there}: put fewer outside")
    splits = {site: split_cases(find_cases(data / site), task, site_folder=data / site) for site in inside}
    labels = {site: len(labeled(split["train"])) for site, split in splits.items()}
    if sum(number >= max(1, task.training.min_labels) for number in labels.values()) < 2:
        counts = ", ".join(f"{site} {number}" for site, number in labels.items())
        raise DatasetError(
            f"task {task.name} needs {task.training.min_labels} labeled images to train on at two sites at least; "
            f"there are: {counts}: label more images"
        )
    return inside


def _open_state(folder: Path, task: Task, inside: Sequence[str], seed: int) -> FederationState:
    """The federation in a state folder, or a new one; never another one."""
    if not (folder / RECORD).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "task.yaml").write_text(yaml.safe_dump(task.to_dict(), sort_keys=False), encoding="utf-8")
        # FLARE takes no dots or blanks in a client's name.
        clients = {f"{re.sub('[^A-Za-z0-9]+', '-', site)}-{n}": site for n, site in enumerate(inside, start=1)}
        return FederationState.create(folder, task=task, clients=clients, seed=seed)
    state = FederationState.open(folder)
    theirs = (_trained_by(state.task), sorted(state.clients.values()), state.seed)
    ours = (_trained_by(task), sorted(inside), seed)
    differing = [name for name, one, other in zip(("task", "sites", "seed"), theirs, ours, strict=True) if one != other]
    if differing:
        what = " and ".join(differing)
        raise ConfigError(f"{folder} is the state of a federation with another {what}: {_anew(folder)}")
    return state


def _trained_by(task: Task) -> dict[str, Any]:
    """What of a task says how its network is trained."""
    return {key: value for key, value in task.to_dict().items() if key not in ("adaptation", "description", "images")}


def _anew(folder: Path) -> str:
    return f"to start anew give another state folder (--state), or remove {folder}"


def _is_complete(federation: FederationState, bank: Path, rounds: int) -> bool:
    if not federation.shared or federation.shared["rounds_done"] != rounds:
        return False
    try:
        manifest = ModelBank.open(bank, version=federation.shared["bank_version"]).manifest
    except BankError:
        return False
    return manifest.federation == federation.federation


def _find_fatal(log: Path, start: int) -> str:
    return next((line for line in _lines(log, start) if _FATAL.search(line)), "")


def _first_error(log: Path, start: int) -> str:
    errors = [line for line in _lines(log, start) if re.search(r"ERROR|Error|CRITICAL", line)]
    return errors[0][:300] if errors else "it left no error message"


def _lines(log: Path, start: int) -> list[str]:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace").splitlines()
