"""What receiving, segmenting and sending DICOM costs: instances per second on loopback, and a series from end to end.

    python benchmarks/dicom_node.py rates     C-STORE by DCMTK's storescu, a plain pynetdicom sender and ours, to our
                                         listener and to Orthanc; C-GET from Orthanc
    python benchmarks/dicom_node.py series    from the first C-STORE to the segmentation at the PACS, step by step

Our listener is `iopfl dicom listen` in a process of its own. Without Orthanc its rows are left out, and a plain
pynetdicom peer takes the segmentation; without DCMTK its row is. Each figure is the median of several runs, with the
slowest and the fastest; the machine's load stands beside them, since senders and receivers share its cores, and how
many runs a plain pynetdicom sender lost an answer in.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "apps"), str(ROOT)]

import pytest  # noqa: E402
import torch  # noqa: E402
from pydicom import dcmread  # noqa: E402
from pynetdicom import AE  # noqa: E402

from app.site import GLAND, make_site_bank  # noqa: E402
from dimse.nodes import HERE, make_slices, storage_peer  # noqa: E402
from iopfl.core.task import read_task  # noqa: E402
from iopfl.dimse.peers import Peer  # noqa: E402
from iopfl.dimse.queue import Job, State, list_jobs  # noqa: E402
from iopfl.dimse.scu import Caller, list_instances, send  # noqa: E402
from label_server import start_process, stop_process, wait_until  # noqa: E402
from orthanc import free_port, running_orthanc  # noqa: E402

START_SECONDS = 120.0
SERIES_SECONDS = 3600.0
LONG_QUIET = 100_000.0  # nothing is segmented while rates are measured


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "series"))
    parser.add_argument("--instances", type=int, default=400)
    parser.add_argument("--size", type=int, default=128, help="pixels of an edge, 16 bits each")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quiet-seconds", type=float, default=5.0, help="of the listener, for series")
    parser.add_argument("--task", default="", help="whose network to use, with random weights; default: a tiny one")
    parser.add_argument("--routed", action="store_true", help="answer by the bank's mixture")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{arguments.instances} instances of {arguments.size} x {arguments.size} x 16 bits, seed {arguments.seed}")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        (_measure_rates if arguments.what == "rates" else _measure_series)(Path(name), arguments, stack)


def _measure_rates(folder: Path, arguments: argparse.Namespace, stack: ExitStack) -> None:
    nodes = {"our listener": stack.enter_context(_listener(folder / "plain", arguments, quiet=LONG_QUIET))}
    nodes["our listener, --durable"] = stack.enter_context(
        _listener(folder / "durable", arguments, "--durable", quiet=LONG_QUIET)
    )
    orthanc = _start_orthanc(folder / "pacs", stack)
    if orthanc is not None:
        nodes["Orthanc"] = Peer("ORTHANC", HERE, orthanc.dicom_port)
    senders: dict[str, Callable[[Peer, list[Path]], None]] = {"plain pynetdicom": _send_plainly, "ours": _send_tuned}
    if shutil.which("storescu"):
        senders = {"storescu (DCMTK)": _send_by_storescu, **senders}
    # No node gets an instance twice: what it has already is less work.
    series = {
        sender: [
            _write_series(folder / f"series {which} {run}", arguments, which * arguments.runs + run)
            for run in range(arguments.runs)
        ]
        for which, sender in enumerate(senders)
    }
    rows = []
    print(f"{'C-STORE from':<18} {'to':<24} {'a second':>9} {'slowest':>8} {'fastest':>8} {'load':>5} {'lost':>5}")
    for node, peer in nodes.items():
        for sender, run in senders.items():
            if "durable" not in node or sender == next(iter(senders)):
                work = [lambda run=run, peer=peer, files=files: run(peer, files) for files in series[sender]]
                rows.append(_time(f"{sender:<18} {node:<24}", work, arguments))
    print(json.dumps({**vars(arguments), "rows": rows}))


def _time(name: str, work: list[Callable[[], Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Instances a second of several runs; one that lost an answer is none."""
    rates, lost = [], 0
    for run in work:
        started = time.perf_counter()
        try:
            run()
        except LostAnswerError:
            lost += 1
        else:
            rates.append(arguments.instances / (time.perf_counter() - started))
    load = os.getloadavg()[0]
    middle, slowest, fastest = (statistics.median(rates), min(rates), max(rates)) if rates else (0.0, 0.0, 0.0)
    print(f"{name} {middle:>9.0f} {slowest:>8.0f} {fastest:>8.0f} {load:>5.1f} {lost:>5}", flush=True)
    values = {"median": middle, "min": slowest, "max": fastest, "load": load, "lost": lost}
    return {"what": " ".join(name.split()), **values}


class LostAnswerError(Exception):
    """A plain pynetdicom sender took an answer away from itself, as it may under load (see `sockets.Requestor`)."""


def _send_by_storescu(peer: Peer, files: list[Path]) -> None:
    words = ["storescu", "-aec", peer.ae_title, "+sd", HERE, str(peer.port), str(files[0].parent)]
    subprocess.run(words, check=True, capture_output=True)


def _send_plainly(peer: Peer, files: list[Path]) -> None:
    """As pynetdicom's documentation does it: no socket option, a data set at a time."""
    ae = AE("PLAIN")
    ae.dimse_timeout = 10
    first = dcmread(files[0])
    ae.add_requested_context(first.SOPClassUID, first.file_meta.TransferSyntaxUID)
    assoc = ae.associate(HERE, peer.port, ae_title=peer.ae_title)
    for file in files:
        if assoc.send_c_store(dcmread(file)).get("Status") != 0:
            raise LostAnswerError
    assoc.release()


def _send_tuned(peer: Peer, files: list[Path]) -> None:
    if not all(sent.is_taken for sent in send(Caller(peer), list_instances(files))):
        raise RuntimeError("an instance was not taken")


def _measure_series(folder: Path, arguments: argparse.Namespace, stack: ExitStack) -> None:
    orthanc = _start_orthanc(folder / "pacs", stack)
    if orthanc is not None:
        pacs = Peer("ORTHANC", HERE, orthanc.dicom_port)
    else:
        pacs = stack.enter_context(storage_peer()).peer
    node = folder / "node"
    peer = stack.enter_context(_listener(node, arguments, quiet=arguments.quiet_seconds, pacs=pacs))
    steps = ("receive", "quiet", "read", "prepare", "model", "build SEG", "send", "beyond")
    print(" ".join(f"{step:>10}" for step in steps))
    rows = []
    for run in range(arguments.runs):
        files = _write_series(folder / f"series {run}", arguments, run)
        _send_tuned(peer, files)
        job = wait_until(
            lambda: _finished(node / "dimse" / "queue", len(rows)), SERIES_SECONDS, what="the segmentation"
        )
        times = job.times
        split = {
            "receive": times["last"] - times["first"],
            "quiet": times["complete"] - times["last"],
            "read": times["read"] - times["complete"],
            "prepare": times["model"] - times["read"],
            "model": times["answered"] - times["model"],
            "build SEG": times["segmented"] - times["answered"],
            "send": times["sent"] - times["segmented"],
        }
        allowed = arguments.quiet_seconds + split["model"]
        split["beyond"] = times["sent"] - times["last"] - allowed
        rows.append({**split, "load": os.getloadavg()[0]})
        print(" ".join(f"{split[step]:>10.2f}" for step in steps), flush=True)
    beyond = [row["beyond"] for row in rows]
    print(
        f"beyond receiving, the quiet period of {arguments.quiet_seconds:g} s and the model: "
        f"median {statistics.median(beyond):.2f} s, worst {max(beyond):.2f} s; to {pacs}"
    )
    print(json.dumps({**vars(arguments), "rows": rows}))


def _finished(queue: Path, before: int) -> Job | None:
    """The newest job, once there is one more that is done."""
    jobs = list_jobs(queue)
    failed = [job.reason for job in jobs if job.state in (State.REFUSED, State.FAILED)]
    if failed:
        raise RuntimeError(failed[0])
    done = [job for job in jobs if job.state is State.DONE]
    return done[-1] if len(done) > before else None


def _write_series(folder: Path, arguments: argparse.Namespace, run: int = 0) -> list[Path]:
    folder.mkdir(parents=True)
    seed = arguments.seed + run
    for number, ds in enumerate(make_slices(arguments.instances, size=arguments.size, seed=seed, series=f"{seed}")):
        ds.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    return sorted(folder.iterdir())


@contextmanager
def _listener(
    folder: Path, arguments: argparse.Namespace, *more: str, quiet: float, pacs: Peer | None = None
) -> Iterator[Peer]:
    """`iopfl dicom listen` with a bank of random networks."""
    folder.mkdir(parents=True)
    task = replace(read_task(arguments.task) if arguments.task else GLAND, modality="MR")
    bank = make_site_bank(folder / "bank", task)
    pacs = pacs or Peer("NOBODY", HERE, 104)
    answer = f"{task.name}_routed" if arguments.routed else task.name
    rules = {
        "rules": [{"answer": answer, "send_to": ["pacs"]}],
        "destinations": {"pacs": {"ae_title": pacs.ae_title, "host": pacs.host, "port": pacs.port}},
    }
    (folder / "rules.yaml").write_text(json.dumps(rules))
    port, log = free_port(), folder / "listen.log"
    words = ["--rules", folder / "rules.yaml", "--bank", bank.folder, "--keys", folder / "keys", "--state", folder]
    words += ["--port", port, "--quiet-seconds", quiet, *more]
    process = start_process([sys.executable, "-m", "iopfl.cli", "dicom", "listen", *map(str, words)], log)
    try:
        wait_until(lambda: "listens on" in log.read_text(), START_SECONDS, what=f"the listener, see {log}")
        yield Peer("IOPFL", HERE, port)
    finally:
        stop_process(process)


def _start_orthanc(folder: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(running_orthanc(folder))
    except pytest.skip.Exception as absent:
        print(absent)
        return None


if __name__ == "__main__":
    main()
