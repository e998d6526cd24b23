"""`kill -9` of `iopfl dicom listen` at 50 random moments while series arrive: nothing is lost, nothing doubled."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import build_context

from app.site import GLAND, make_site_bank
from dimse.nodes import HERE, StoragePeer, make_slices, plain_association, storage_peer
from iopfl.dimse.queue import State, list_jobs
from label_server import start_process, stop_process, wait_until
from orthanc import free_port

pytestmark = pytest.mark.long

KILLS = 50
SLICES = 5
LONGEST = 5.0
"""Seconds that a listener lives, once it listens."""
START_SECONDS = 120.0
END_SECONDS = 300.0


class Scanner(threading.Thread):
    """Sends series after series, each instance until it is accepted, and notes which were."""

    def __init__(self, port: int) -> None:
        super().__init__(name="scanner")
        self._port = port
        self._enough = threading.Event()
        self.series: list[list[Dataset]] = []
        self.accepted: dict[str, Dataset] = {}
        self.attempts: Counter[str] = Counter()

    def run(self) -> None:
        while not self._enough.is_set():
            datasets = make_slices(SLICES, series=f"series {len(self.series)}", seed=len(self.series))
            for ds in datasets:
                ds.NumberOfSeriesRelatedInstances = SLICES
            self.series.append(datasets)
            while any(ds.SOPInstanceUID not in self.accepted for ds in datasets):
                self._send([ds for ds in datasets if ds.SOPInstanceUID not in self.accepted])

    def finish(self) -> None:
        """Send the series that was begun to its end, and no more."""
        self._enough.set()
        self.join()

    def _send(self, datasets: list[Dataset]) -> None:
        contexts = [build_context(datasets[0].SOPClassUID, datasets[0].file_meta.TransferSyntaxUID)]
        with plain_association(self._port, contexts) as assoc:
            for ds in datasets:
                if not assoc.is_established:
                    break
                self.attempts[str(ds.SOPInstanceUID)] += 1
                answer = assoc.send_c_store(ds)
                if "Status" not in answer:
                    assoc.abort()
                    return
                assert answer.Status == 0, f"refused with 0x{answer.Status:04X}"
                self.accepted[str(ds.SOPInstanceUID)] = ds
        time.sleep(0.05)


@contextmanager
def listener(command: list[str], log: Path) -> Iterator[subprocess.Popen]:
    process = start_process(command, log)
    try:
        yield process
    finally:
        stop_process(process)


def test_a_listener_killed_at_random_moments_loses_and_doubles_nothing(tmp_path):
    draw = random.Random(5)
    bank = make_site_bank(tmp_path / "bank", replace(GLAND, modality="MR"))
    state, port = tmp_path / "state", free_port()
    with storage_peer() as pacs:
        rules = {
            "rules": [{"name": "all", "match": {"modality": "MR"}, "answer": "gland", "send_to": ["pacs"]}],
            "destinations": {"pacs": {"ae_title": "PACS", "host": HERE, "port": pacs.port}},
        }
        (tmp_path / "rules.yaml").write_text(json.dumps(rules))
        words = ["--rules", tmp_path / "rules.yaml", "--bank", bank.folder, "--keys", tmp_path / "keys"]
        words += ["--state", state, "--port", port, "--quiet-seconds", 0.2]
        command = [sys.executable, "-m", "iopfl.cli", "dicom", "listen", *map(str, words)]
        scanner = Scanner(port)
        scanner.start()
        stopped_in: Counter[str] = Counter()
        for kill in range(KILLS):
            log = tmp_path / f"listen {kill}.log"
            with listener(command, log) as process:
                wait_until(lambda log=log: "listens on" in log.read_text(), START_SECONDS, what=f"the listener: {log}")
                time.sleep(draw.uniform(0.0, LONGEST))
                process.send_signal(signal.SIGKILL)
                process.wait(10)
            assert "Traceback" not in log.read_text(), log.read_text()
            stopped_in.update(job.state for job in list_jobs(state / "dimse" / "queue"))
        with listener(command, tmp_path / "last.log"):
            scanner.finish()
            wait_until(lambda: _all_done(state, scanner), END_SECONDS, what=f"every series, {tmp_path}")
            jobs = list_jobs(state / "dimse" / "queue")
    counts = {"series": len(scanner.series), "accepted": len(scanner.accepted)}
    counts["sent again"] = sum(count - 1 for count in scanner.attempts.values())
    print(json.dumps({**counts, "kills": KILLS, "states seen": stopped_in}))  # noqa: T201  # pytest -s
    _check_inbox(state, scanner)
    _check_pacs(pacs, {job.series_instance_uid: job.segmentation for job in jobs})
    assert counts["series"] > KILLS / 2 and counts["sent again"] > 0, "the kills should have hit something"


def _all_done(state: Path, scanner: Scanner) -> bool:
    jobs = list_jobs(state / "dimse" / "queue")
    return len(jobs) == len(scanner.series) and all(job.state is State.DONE for job in jobs)


def _check_inbox(state: Path, scanner: Scanner) -> None:
    """Every accepted instance is there once, as it was sent, and nothing else is."""
    files = [path for path in (state / "dimse" / "series").rglob("*") if path.is_file()]
    assert Counter(path.stem for path in files) == Counter(dict.fromkeys(scanner.accepted, 1))
    for path in files:
        assert dcmread(path) == scanner.accepted[path.stem]
    assert not list((state / "dimse" / "incoming").iterdir())


def _check_pacs(pacs: StoragePeer, segmentations: dict[str, str]) -> None:
    """One segmentation of each series; sent twice it is the same instance."""
    received: dict[str, set[str]] = {}
    for ds in pacs.received:
        series = str(ds.ReferencedSeriesSequence[0].SeriesInstanceUID)
        received.setdefault(series, set()).add(str(ds.SOPInstanceUID))
    assert received == {series: {segmentation} for series, segmentation in segmentations.items()}
