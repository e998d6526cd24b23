"""Runs a federation to its last round: one short FLARE job after another.

FLARE never resumes a job, and a single site's crash can end one. What counts
is the state that the controller keeps (`persistor`): a job is judged by the
rounds it has added there, never by its own status, and followed by another
until all are done.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from nvflare.apis.job_def import JobMetaKey
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from fl_bridge.controller import RoundController
from fl_bridge.federation_file import FederationFile
from fl_bridge.job import JobOptions, build_job, flare_text
from fl_bridge.label_server_trainer import LabelServerTrainer
from fl_bridge.persistor import FederationState
from fl_bridge.progress import Follower
from fl_bridge.record import RECORD, FederationRecord
from fl_bridge.server_kit import ADMIN, ADMIN_FOLDER, BANK, KEYS, LOCK, STATE, STOP, read_failed_job, read_settings
from iopfl.base.errors import ConfigError, IOPFLError, TrainingError
from iopfl.base.files import Scratch, sweep
from iopfl.base.locks import try_hold

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_STATUS_SECONDS = 3.0
_BACK_OFF = (2.0, 5.0, 10.0, 30.0, 60.0)
_MAX_FAILED_JOBS = 8
"""So many that sites ended, and no round between them: one more would end as they did."""
_UNFINISHED = ("SUBMITTED", "APPROVED", "DISPATCHED", "RUNNING")


class StoppedError(TrainingError):
    """Somebody asked the federation to stop (`fl-bridge stop`)."""


@dataclass(frozen=True)
class _Ended:
    """How a job ended.

    Attributes:
        problem: in words.
        sites: those whose word ended it, or that refused it.
    """

    problem: str
    sites: tuple[str, ...] = ()


def open_state(kit: Path) -> FederationState:
    """The state of a federation, from its server's kit; begun if it has not, with the sites that are new.

    Raises:
        ConfigError: the kit is not a server's, or its task has changed in what is trained.
    """
    settings = read_settings(kit)
    folder = kit / STATE
    if not (folder / RECORD).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        return FederationState.create(
            folder,
            task=settings.task,
            clients=settings.clients,
            seed=settings.seed,
            federation=settings.federation,
        )
    state = FederationState.open(folder)
    if state.task.network != settings.task.network or state.task.labels != settings.task.labels:
        raise ConfigError(f"{kit}: the task has another network or other labels than the federation began with")
    state.admit(settings.clients)
    return state


def run(kit: Path, *, progress: TextIO | None = None) -> FederationRecord:
    """Run a federation until its last round is done and its bank is made; goes on where it stopped.

    Args:
        kit: the kit of the server, on its machine; FLARE's server need not be up yet.
        progress: where progress bar and round lines go; None = nowhere.

    Raises:
        ConfigError: not the server's kit, or run by somebody else already.
        StoppedError: `fl-bridge stop` was called.
        TrainingError: the same sites ended job after job, and no round was done.
    """
    kit = kit.absolute()
    settings = read_settings(kit)
    state: FederationRecord = open_state(kit)
    with try_hold(kit / LOCK) as lock:
        if lock is None:
            raise ConfigError(f"{kit}: the federation is being run already: see fl-bridge status {kit}")
        (kit / STOP).unlink(missing_ok=True)
        sweep(kit)
        with Follower(state.folder, settings.rounds, progress) as follower:
            failures, blamed = 0, list[str]()
            while not is_complete(state, settings):
                before = (state.rounds_done, state.shared)
                target = min(
                    settings.rounds, (state.rounds_done // settings.rounds_per_job + 1) * settings.rounds_per_job
                )
                ended = _run_job(kit, settings, target, follower)
                state = follower.look()
                if (state.rounds_done, state.shared) != before:
                    failures, blamed = 0, []
                elif not is_complete(state, settings):
                    pause = _BACK_OFF[min(failures, len(_BACK_OFF) - 1)]
                    failures += 1
                    blamed += [", ".join(ended.sites)] if ended.sites else []
                    problem = ended.problem if ended.sites else state.failure or ended.problem
                    _check_sites(blamed, problem)
                    logger.warning("%s; another job in %.0f s", problem, pause)
                    _wait(kit, pause)
    return state


def is_complete(state: FederationRecord, settings: FederationFile) -> bool:
    """Whether all rounds are done, and the bank is made of them."""
    return state.rounds_done >= settings.rounds and (state.shared or {}).get("rounds_done") == state.rounds_done


def _check_sites(blamed: Sequence[str], problem: str) -> None:
    """Give up where sites end job after job: they could keep everybody busy for ever.

    Args:
        blamed: the sites of each such job since the last round.
        problem: how the last one ended.

    Raises:
        TrainingError: that is so; names the sites.
    """
    if len(blamed) >= _MAX_FAILED_JOBS:
        raise TrainingError(
            f"{problem}; {len(blamed)} jobs ended so since the last round, by {'; '.join(sorted(set(blamed)))}: have "
            "these sites look at their bridge's log and bring fl-bridge up to date, then fl-bridge run goes on; or "
            "take them out of federation.yaml"
        )


def _run_job(kit: Path, settings: FederationFile, target: int, follower: Follower) -> _Ended:
    """Submit one job, and follow the state until the job has done its part or is gone; returns how it ended."""
    with contextlib.ExitStack() as stack:
        try:
            session = stack.enter_context(_session(kit))
            _wait_for_sites(kit, session, settings)
            job = session.submit_job(_export_job(kit, settings, target, stack))
        except IOPFLError:
            raise
        except Exception as error:  # FLARE's session raises many kinds while the server is away or starting
            return _Ended(f"FLARE's server does not answer ({type(error).__name__}): start it with fl-bridge server")
        logger.info("job %s: rounds to %d", job, target)
        try:
            return _follow(kit, session, job, settings, target, follower)
        except StoppedError:
            with contextlib.suppress(Exception):
                session.abort_job(job)
            raise


def _follow(kit: Path, session: Session, job: str, settings: FederationFile, target: int, follower: Follower) -> _Ended:
    asked = time.monotonic()
    refusing: tuple[str, ...] = ()
    while True:
        follower.look()
        _check_stop(kit)
        if time.monotonic() - asked > _STATUS_SECONDS:
            asked = time.monotonic()
            try:
                meta = session.get_job_meta(job)
            except Exception as error:  # FLARE's session raises many kinds when the server is gone
                return _Ended(f"FLARE's server is gone ({type(error).__name__})")
            if not refusing and (refusing := _find_refusing(meta, settings.clients)):
                what = (
                    "refused the job or did not answer: its own log says why, and the same fl-bridge helps everywhere"
                )
                logger.warning("%s %s", ", ".join(refusing), what)
            if not str(meta.get("status")).endswith(_UNFINISHED):
                return _describe_end(
                    kit,
                    job,
                    settings,
                    refusing,
                    f"{meta.get('status')} at round {follower.look().rounds_done} of {target}",
                )
        time.sleep(_POLL_SECONDS)


def _find_refusing(meta: Mapping[str, Any], clients: Mapping[str, str]) -> tuple[str, ...]:
    """The sites that a job did not get to, as FLARE's `CLIENT: OK` or `CLIENT: why not` of each say."""
    details = [str(line).partition(": ") for line in meta.get(JobMetaKey.JOB_DEPLOY_DETAIL.value) or ()]
    return tuple(sorted(clients[name] for name, _, said in details if name in clients and said != "OK"))


def _describe_end(kit: Path, job: str, settings: FederationFile, refusing: tuple[str, ...], status: str) -> _Ended:
    failed = settings.clients.get(read_failed_job(kit, job) or "")
    if failed:
        return _Ended(f"job {job} ended as {status}: {failed} reported that its part failed", (failed,))
    if refusing:
        return _Ended(f"job {job} ended as {status}: refused or not answered by {', '.join(refusing)}", refusing)
    return _Ended(f"job {job} ended as {status}")


@contextlib.contextmanager
def _session(kit: Path) -> Any:
    """An administrator's session; one that is left open would keep Python from ending."""
    session = new_secure_session(ADMIN, str(kit / ADMIN_FOLDER), timeout=15.0)
    try:
        yield session
    finally:
        with contextlib.suppress(Exception):
            session.close()


def _wait_for_sites(kit: Path, session: Session, settings: FederationFile) -> None:
    """Wait until enough sites are connected; the rest may come with a later job."""
    said = False
    while True:
        connected = {client.name for client in session.get_connected_client_list()} & set(settings.clients)
        if len(connected) == len(settings.clients):
            return
        if len(connected) >= settings.min_sites and said:
            return
        if not said:
            missing = sorted(settings.clients[name] for name in set(settings.clients) - connected)
            logger.warning("waiting for %s to connect", ", ".join(missing))
        said = True
        _wait(kit, 5.0)


def _export_job(kit: Path, settings: FederationFile, target: int, stack: contextlib.ExitStack) -> str:
    """Write the job's files; gives their folder."""
    controller = RoundController(
        target,
        flare_text(kit / BANK),
        flare_text(kit / KEYS),
        total_rounds=settings.rounds,
        share_every=settings.share_every,
        publish=True,
        min_sites=settings.min_sites,
        timeout=settings.round_timeout,
        grace=settings.grace,
        norm_limit=settings.norm_limit,
        aggregation=settings.aggregation,
        weight_limit=settings.weight_limit,
    )
    trainer: Callable[[], LabelServerTrainer] = lambda: LabelServerTrainer(  # noqa: E731
        settings.task.name, seed=settings.seed, proximal_weight=settings.proximal_weight
    )
    job = build_job(
        controller,
        state=kit / STATE,
        trainers={client: trainer() for client in settings.clients},
        name=settings.name,
        options=JobOptions(settings.quantize, settings.update_percentile, kit / STATE / "metrics"),
    )
    folder = stack.enter_context(Scratch(kit / "job"))
    job.export_job(str(folder))
    return str(folder / settings.name)


def _wait(kit: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _check_stop(kit)
        time.sleep(min(_POLL_SECONDS, seconds))


def _check_stop(kit: Path) -> None:
    if (kit / STOP).exists():
        raise StoppedError("stopped; fl-bridge run goes on where it is")
