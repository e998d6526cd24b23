"""The label server under people: how fast it answers while it computes, how it queues, what it keeps in memory.

    python benchmarks/serving.py

A real server on loopback with the built-in prostate task at phantom size, a bank of four random experts, and phantoms.
`/info` is asked for at a steady pace while nothing happens, while inferences run one after the other, and while a
training runs besides; then many ask at once; then inference after inference, with the process's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import requests
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "apps"), str(ROOT)]

from app.site import APP, conf_of, make_site_bank  # noqa: E402
from iopfl.core.task import read_task  # noqa: E402
from iopfl.datasets import write_phantoms  # noqa: E402
from label_server import LabelServer, running_server  # noqa: E402

TASK = ROOT / "sample-datasets" / "prostate_phantom" / "task.yaml"
SITES = ("site_a", "site_b", "site_c")
PAUSE = 0.05
"""Seconds between two questions for `/info`."""
WARM = 50
"""Inferences after which memory is first read: caches are full then."""


def main() -> None:
    """Measure, and print tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=300, help="for /info, in each state (default: %(default)s)")
    parser.add_argument("--crowd", type=int, default=40, help="who ask at once (default: %(default)s)")
    parser.add_argument("--inferences", type=int, default=500, help="for memory (default: %(default)s)")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {vars(arguments)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sites = write_phantoms(folder / "sites", sites=["site_a"], cases=12, seed=0)
        bank = make_site_bank(folder / "bank", read_task(TASK), sites=SITES)
        with running_server(APP, sites / "site_a", state=folder / "state", conf=conf_of(bank)) as server:
            images = sorted(server.get("/iopfl/images").json()["images"], key=lambda image: image["id"])
            ids = [image["id"] for image in images]
            results = {
                "info": _measure_info(server, ids, arguments.questions),
                "crowd": _measure_crowd(server, ids[0], arguments.crowd),
                "memory": _measure_memory(server, ids, arguments.inferences),
            }
    print(json.dumps({**vars(arguments), **results}))


def infer(server: LabelServer, image: str, model: str = "prostate_routed", who: str = "") -> requests.Response:
    """Ask for a mask; only its `params` come back."""
    params = json.dumps({"client_id": who})
    return server.post(f"/infer/{model}?image={image}&output=json", data={"params": params})


def _measure_info(server: LabelServer, ids: list[str], questions: int) -> dict[str, dict[str, float]]:
    print(f"{'/info, ms':<28}{'p50':>8}{'p99':>8}{'max':>8}")
    found = {}
    for state in ("idle", "inferences", "inferences and a training"):
        with _load(server, ids, inferring=state != "idle", training="training" in state):
            seconds = []
            for _ in range(questions):
                started = time.perf_counter()
                server.get("/info/").raise_for_status()
                seconds.append(time.perf_counter() - started)
                time.sleep(PAUSE)
        p50, p99, most = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.99, 1))
        found[state] = {"p50": p50, "p99": p99, "max": most}
        print(f"{state:<28}{p50:>8.1f}{p99:>8.1f}{most:>8.1f}", flush=True)
    return found


@contextmanager
def _load(server: LabelServer, ids: list[str], *, inferring: bool, training: bool) -> Iterator[None]:
    stop = threading.Event()

    def keep_inferring() -> None:
        count = 0
        while not stop.is_set():
            infer(server, ids[count % len(ids)]).raise_for_status()
            count += 1

    thread = threading.Thread(target=keep_inferring)
    if training:
        server.post("/train/prostate", json={"epochs": 1000}).raise_for_status()
        while "epoch" not in str(server.get("/train/").json().get("details")):
            time.sleep(0.5)
    if inferring:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if inferring:
            thread.join()
        if training:
            server.request("DELETE", "/train/").raise_for_status()


def _measure_crowd(server: LabelServer, image: str, crowd: int) -> dict[str, object]:
    answers: list[tuple[int, bool, float]] = []

    def ask(number: int) -> None:
        started = time.perf_counter()
        answer = infer(server, image, model="prostate", who=f"person {number}")
        answers.append((answer.status_code, "Retry-After" in answer.headers, time.perf_counter() - started))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(crowd)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = Counter(str(status) for status, _, _ in answers)
    told = all(told for status, told, _ in answers if status == 503)
    longest = max(seconds for _, _, seconds in answers)
    print(f"{crowd} at once: {dict(statuses)}, each 503 with Retry-After: {told}; the longest wait {longest:.1f} s")
    return {"statuses": dict(statuses), "retry_after": told, "longest": longest}


def _measure_memory(server: LabelServer, ids: list[str], inferences: int) -> dict[str, float]:
    process = psutil.Process(server.pid)
    megabytes = []
    for count in tqdm(range(WARM + inferences), unit="inference", disable=None):
        model = "prostate_routed" if count % 2 else "prostate"
        infer(server, ids[count % len(ids)], model=model).raise_for_status()
        if count + 1 >= WARM and (count + 1 - WARM) % 100 == 0:
            megabytes.append(process.memory_info().rss / 2**20)
    print("memory, MiB, every 100 inferences: " + ", ".join(f"{value:.0f}" for value in megabytes))
    return {"first": megabytes[0], "last": megabytes[-1], "most": max(megabytes)}


if __name__ == "__main__":
    main()
