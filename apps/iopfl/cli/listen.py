"""`iopfl dicom listen`, the service that segments what a PACS sends, and `iopfl dicom queue`, what it is at."""

from __future__ import annotations

import argparse
import gc
import getpass
import ipaddress
import json
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iopfl.base.errors import ConfigError
from iopfl.base.names import ROUTED, task_of
from iopfl.cli.dicom_options import Add, add_aet, add_timeouts, add_tls, build_timeouts, build_tls, print_table

if TYPE_CHECKING:
    from iopfl.dimse.listening import Answer, Answered
    from iopfl.dimse.progress import Progress, Tell
    from iopfl.dimse.queue import Job
    from iopfl.dimse.scp import Record
    from iopfl.lib.models import SiteModels

EVERYONE = "*"
FOLDER = "dimse"
"""Of the service, in the state folder."""

_GB = 10**9


def add_listen(actions: Any, add: Add, add_keys: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add `iopfl dicom listen`."""
    from iopfl.server_options import add_limits

    text = "Receive series by DICOM, segment them by rules, and send the segmentations on."
    example = "iopfl dicom listen --rules rules.yaml --bank bank/ --state state/ --allow ORTHANC"
    parser = add(actions, "listen", _listen, text, example)
    parser.add_argument(
        "--rules", type=Path, required=True, metavar="FILE", help="what is segmented by what, and sent where"
    )
    parser.add_argument(
        "--bank",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="folder of a bank; repeatable, one per task",
    )
    parser.add_argument("--site", default="", help="this site's name in the banks; none for an outside site")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add_limits(parser)
    _add_state(parser)
    add_keys(parser)
    add_aet(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=11112, help="(default: %(default)s)")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="AETITLE",
        help=f"who may call; repeatable. Needed where --host is not of this machine alone; {EVERYONE} = everybody",
    )
    parser.add_argument("--max-associations", type=int, default=16, metavar="N", help="at once (default: %(default)s)")
    add_tls(parser)
    add_timeouts(parser)
    parser.add_argument(
        "--quiet-seconds",
        type=float,
        default=10,
        metavar="S",
        help="without a new instance, until a series is complete",
    )
    parser.add_argument(
        "--keep-days", type=float, default=7, metavar="D", help="series stay when done (default: %(default)s)"
    )
    parser.add_argument(
        "--max-gb", type=float, metavar="GB", help="largest size of received series; the oldest that are done go first"
    )
    parser.add_argument(
        "--min-free-gb",
        type=float,
        metavar="GB",
        help="what stays free of the disk, or nothing is accepted (default: a twentieth of it, at most 10)",
    )
    parser.add_argument("--durable", action="store_true", help="accept an instance when it is on the disk: slower")
    parser.add_argument("--commitment", action="store_true", help="answer requests for storage commitment")


def add_queue(actions: Any, add: Add) -> None:
    """Add `iopfl dicom queue`."""
    text = "Show what was received and what became of it; try a series again, or drop it."
    parser = add(actions, "queue", _queue, text, "iopfl dicom queue --state state/")
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "retry", "drop"),
        default="list",
        metavar="ACTION",
        help="list, retry or drop",
    )
    parser.add_argument("series", nargs="*", metavar="UID", help="Series Instance UIDs, for retry and drop")
    _add_state(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    help_text = "write volume and long axis of each label of each series that was segmented there"
    parser.add_argument("--csv", type=Path, metavar="FILE", help=help_text)


def _add_state(parser: argparse.ArgumentParser) -> None:
    from iopfl.server_options import DEFAULT_STATE

    parser.add_argument("--state", type=Path, default=DEFAULT_STATE, metavar="DIR", help="(default: %(default)s)")


def _listen(arguments: Any) -> None:
    from iopfl.access.state import check_state
    from iopfl.base.files import keep_others_out
    from iopfl.dimse.listening import Listener, ListenSettings
    from iopfl.dimse.rules import read_rules
    from iopfl.dimse.scp import SCPSettings
    from iopfl.lib.models import SiteModels
    from iopfl.lib.settings import AppSettings
    from iopfl.server_options import limits_conf

    scp = SCPSettings(
        ae_title=arguments.aet,
        host=arguments.host,
        port=arguments.port,
        allow=_allowed(arguments),
        max_associations=arguments.max_associations,
        tls=build_tls(arguments),
        timeouts=build_timeouts(arguments),
    )
    settings = ListenSettings(
        folder=arguments.state / FOLDER,
        scp=scp,
        quiet_seconds=arguments.quiet_seconds,
        keep_days=arguments.keep_days,
        max_bytes=None if arguments.max_gb is None else int(arguments.max_gb * _GB),
        min_free_bytes=None if arguments.min_free_gb is None else int(arguments.min_free_gb * _GB),
        durable=arguments.durable,
        commitment=arguments.commitment,
    )
    rules = read_rules(arguments.rules)
    conf = {
        "bank": ",".join(str(bank.resolve()) for bank in arguments.bank),
        "site": arguments.site,
        "keys": str(arguments.keys),
        "device": arguments.device,
        **limits_conf(arguments),
    }
    models = SiteModels(AppSettings.from_conf(conf, default_state=arguments.state))
    rules = rules.for_tasks(models.tasks.values())
    rules.check_experts(lambda name: len(models.predictor(name).bank))
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, stream=sys.stderr, force=True)
    logging.getLogger("iopfl").setLevel(logging.INFO)
    warnings.filterwarnings("ignore")  # pydicom's quote values, which are patients'
    gc.freeze()  # pynetdicom collects garbage every few seconds; what torch brought need not be looked through
    keep_others_out()
    check_state(arguments.state)
    stop = threading.Event()
    with Listener(settings, rules, build_answer(models), build_record(arguments.state)) as listener:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        print(f"{scp.ae_title} listens on {scp.host}:{listener.port}{' by TLS' if scp.tls else ''}", flush=True)
        stop.wait()


def build_answer(models: SiteModels) -> Answer:
    """What segments an image file, from the models of a site; the same that its label server answers with."""
    from iopfl.dicomio.segmentation import Origin, segments_of
    from iopfl.dimse.listening import Answered

    def answer(
        name: str,
        image: Path,
        cancelled: Callable[[], bool],
        with_disagreement: bool = False,
        progress: Tell | None = None,
    ) -> Answered:
        task_name = task_of(name)
        with models.lock(task_name):
            predictor = models.predictor(task_name)
            result = predictor.segment(
                image,
                "routed" if name.endswith(ROUTED) else None,
                with_disagreement=with_disagreement,
                progress=progress,
                cancelled=cancelled,
            )
        made, task = result.answer, predictor.task
        origin = Origin(
            algorithm=f"iopfl {task.name}",
            version=f"bank {made.bank}, {made.model}",
            description=task.description or task.name,
        )
        where = None if result.disagreement is None else result.disagreement.numpy()
        return Answered(result.mask.numpy(), segments_of(task), origin, made.seconds, made.quality, where)

    return answer


def build_record(state: Path) -> Record:
    """What takes down in a site's audit log what the service did, and for which AE title."""
    from iopfl.access.audit import AuditLog

    log = AuditLog(state / "audit")
    return lambda ae_title, what, about: log.append(f"ae:{ae_title}", what, about)


def _allowed(arguments: Any) -> tuple[str, ...]:
    """Calling AE titles that are taken; empty = all.

    Raises:
        ConfigError: others than this machine could call, and nobody said who may.
    """
    if EVERYONE in arguments.allow:
        return ()
    if not arguments.allow and not _is_loopback(arguments.host):
        raise ConfigError(
            f"--host {arguments.host} is open to other machines: say who may call with --allow AETITLE, "
            f"or --allow '{EVERYONE}'"
        )
    return tuple(arguments.allow)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _queue(arguments: Any) -> None:
    from iopfl.access.audit import AuditLog
    from iopfl.dimse.progress import WORK, read_progress
    from iopfl.dimse.queue import State, list_jobs
    from iopfl.dimse.upkeep import ask

    folder, log = arguments.state / FOLDER, AuditLog(arguments.state / "audit")
    if arguments.action != "list":
        if not arguments.series:
            raise ConfigError(f"queue {arguments.action}: give the Series Instance UIDs that iopfl dicom queue shows")
        for uid in arguments.series:
            is_done = ask(folder, arguments.action, uid)
            log.append(f"system:{getpass.getuser()}", f"dicom queue {arguments.action}", {"series": uid})
            print(f"{uid}: {arguments.action}{'' if is_done else ', by the listener, after what it does now'}")
        return
    jobs, now = list_jobs(folder / "queue"), read_progress(folder / WORK)
    if arguments.csv is not None:
        from iopfl.dimse.sizes import write_sizes

        write_sizes(folder, jobs, arguments.csv)
        return

    def find_progress(job: Job) -> Progress | None:
        return now if now and now.series == job.series_instance_uid and job.state is State.SEGMENTING else None

    if arguments.json:
        found = ((job, find_progress(job)) for job in jobs)
        print(json.dumps([asdict(job) | {"progress": far and far._asdict()} for job, far in found]))
        return
    header = ("series", "state", "instances", "answer", "from", "waits for", "changed", "reason")
    rows = [
        (
            job.series_instance_uid,
            " ".join(map(str, filter(None, (job.state, find_progress(job))))),
            job.instances,
            job.answer,
            job.calling_ae_title,
            ", ".join(job.waiting),
            job.changed[:19],
            job.reason or (job.left_out and f"left out: {job.left_out}"),
        )
        for job in jobs
    ]
    print_table(rows, header)
