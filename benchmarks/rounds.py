"""What a round costs beyond training: seconds and bytes by FLARE, label servers and aggregation.

    python benchmarks/rounds.py simulator        rounds in FLARE's simulator
    python benchmarks/rounds.py production       the same over mutual TLS, through a label server at each site
    python benchmarks/rounds.py aggregation      4 to 32 sites: seconds and memory of checking, keeping, combining
    python benchmarks/rounds.py growth           4 to 32 sites with a small network in the simulator
    python benchmarks/rounds.py encryption       homomorphic encryption, FLARE's settings

All but `growth` use a network of 31 MB and tiny images, so that training is next to nothing. A round's overhead is its
wall time less that of the slowest site's training; the first round, which starts processes, is shown apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "apps"), str(ROOT)]

from bridge.conftest import write_site  # noqa: E402
from bridge.production import production  # noqa: E402
from fl_bridge.aggregation import AGGREGATIONS, aggregate  # noqa: E402
from fl_bridge.checking import check_update  # noqa: E402
from fl_bridge.federation_file import client_name  # noqa: E402
from fl_bridge.job import JobOptions  # noqa: E402
from fl_bridge.persistor import FederationState  # noqa: E402
from fl_bridge.simulate import run_federation  # noqa: E402
from fl_bridge.spool import Spool  # noqa: E402
from fl_bridge.trainer import InProcessTrainer  # noqa: E402
from iopfl.core.networks import build_network  # noqa: E402
from iopfl.core.order import Order  # noqa: E402
from iopfl.core.task import read_task  # noqa: E402
from iopfl.core.weights import floating, snapshot  # noqa: E402

TASK = """
base: prostate
name: disk
modality: OT
labels: {disk: 1}
slices: 1
size: [32, 32]
network:
  name: BasicUNet
  args: {features: [64, 64, 128, 256, 512, 64], norm: batch}
training: {local_steps: 1, batch_size: 2, min_labels: 4, validation_share: 0.25}
"""
SITES = ("east", "north", "west")


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulator", "production", "aggregation", "growth", "encryption"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--quantize", default="none", choices=("none", "float16"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "disk.yaml").write_text(TASK)
        weights = snapshot(build_network(read_task(str(folder / "disk.yaml"))))
        size = sum(value.nbytes for value in floating(weights).values())
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; weights {size / 1e6:.1f} MB")
        if arguments.what == "aggregation":
            _measure_aggregation(folder, weights)
        elif arguments.what == "growth":
            _measure_growth(folder, arguments)
        elif arguments.what == "encryption":
            _measure_encryption(floating(weights))
        else:
            _measure_rounds(folder, arguments, size)


def _measure_rounds(folder: Path, arguments: argparse.Namespace, size: int) -> None:
    for number, site in enumerate(SITES):
        write_site(folder / "sites" / site, images=9, seed=number)
    before = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
    run = _simulate if arguments.what == "simulator" else _produce
    state = run(folder, SITES, arguments.rounds, arguments.quantize)
    sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before
    _report(state, arguments, sent / size)


def _simulate(folder: Path, sites: Sequence[str], rounds: int, quantize: str) -> FederationState:
    task = read_task(str(folder / "disk.yaml"))
    clients = {client_name(site): site for site in sites}
    FederationState.create(folder / "state", task=task, clients=clients, seed=0)
    trainers = {
        client: InProcessTrainer(
            str(folder / "sites" / site), str(folder / "disk.yaml"), str(folder / "state" / "sites" / client)
        )
        for client, site in clients.items()
    }
    options = JobOptions(quantize=quantize)
    bank, keys = folder / "bank", folder / "keys"
    run_federation(folder / "state", trainers, rounds=rounds, bank=bank, keys=keys, options=options)
    return FederationState.open(folder / "state")


def _produce(folder: Path, sites: Sequence[str], rounds: int, quantize: str) -> FederationState:
    with production(folder, folder / "disk.yaml", folder / "sites", tuple(sites)) as federation:
        settings = {"rounds": rounds, "rounds_per_job": rounds, "min_sites": len(sites), "quantize": quantize}
        federation.provision(settings)
        federation.start_all()
        return federation.run_to_the_end(1200)


def _report(state: FederationState, arguments: argparse.Namespace, times: float) -> None:
    print(f"{'round':>5} {'seconds':>8} {'training':>9} {'overhead':>9}")
    overheads = []
    for entry in state.rounds:
        training = max(fate["seconds"] for fate in entry["sites"].values())
        overheads.append(entry["seconds"] - training)
        print(f"{entry['round_index'] + 1:>5} {entry['seconds']:>8.2f} {training:>9.2f} {overheads[-1]:>9.2f}")
    steady = statistics.median(overheads[1:])
    print(f"steady overhead, median of the rounds after the first: {steady:.2f} s")
    each = times / len(SITES) / arguments.rounds
    note = "sharing and the start included" + (
        ", and the label servers' trips" if arguments.what == "production" else ""
    )
    print(f"bytes on the loopback a site a round: {each:.2f} times the weights ({note})")
    print(json.dumps({**vars(arguments), "overheads": overheads, "steady": steady, "times": each}))


def _measure_aggregation(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    reference = floating(weights)
    generator = torch.Generator().manual_seed(0)
    rows = []
    print(f"{'sites':>5} {'aggregation':>18} {'check and keep, s':>18} {'combine, s':>11} {'peak above, MB':>15}")
    for count in (4, 8, 16, 32):
        order = Order("benchmark", 0, str(count))
        spool = Spool(folder / "updates", order)
        started = time.perf_counter()
        for number in range(count):
            update = {key: 0.01 * torch.randn(value.shape, generator=generator) for key, value in reference.items()}
            check_update(update, reference, norm_limit=100, what="update")
            spool.add(f"site {number:02d}", update, {"samples": number + 1})
        keeping = time.perf_counter() - started
        del update
        samples = {site: about["samples"] for site, about in sorted(spool.sites.items())}
        for how in AGGREGATIONS:
            with _Peak() as peak:
                started = time.perf_counter()
                aggregate(weights, samples, spool.read, how=how)
                seconds = time.perf_counter() - started
            print(f"{count:>5} {how:>18} {keeping:>18.2f} {seconds:>11.2f} {peak.megabytes:>15.0f}")
            rows.append({"sites": count, "how": how, "keep": keeping, "combine": seconds, "peak_mb": peak.megabytes})
        spool.clear()
    print(json.dumps(rows))


def _measure_growth(folder: Path, arguments: argparse.Namespace) -> None:
    rows = []
    task = TASK.replace("[64, 64, 128, 256, 512, 64]", "[4, 4, 8, 8, 8, 4]")
    print(f"{'sites':>5} {'a round, s':>11} {'a site, s':>10} {'server, MB':>11}")
    for count in (4, 8, 16, 32):
        here = folder / str(count)
        here.mkdir()
        (here / "disk.yaml").write_text(task)
        sites = [f"site {number:02d}" for number in range(count)]
        for number, site in enumerate(sites):
            write_site(here / "sites" / site, images=9, seed=number)
        with _Peak(server_memory) as peak:
            state = _simulate(here, sites, arguments.rounds, "none")
        seconds = statistics.median(entry["seconds"] for entry in state.rounds[1:])
        rows.append({"sites": count, "seconds": seconds, "server_mb": peak.highest / 1e6})
        print(f"{count:>5} {seconds:>11.2f} {seconds / count:>10.3f} {peak.highest / 1e6:>11.0f}", flush=True)
    print(json.dumps(rows))


def server_memory() -> int:
    """Bytes of the process in which the simulator runs its server: the largest of its own; clients have others."""
    found = [0]
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "fl_bridge.simulator_process" in child.cmdline():
                found.append(child.memory_info().rss)
    return max(found)


def _measure_encryption(weights: dict[str, torch.Tensor]) -> None:
    import tenseal

    # FLARE's defaults (nvflare.lighter.impl.he): CKKS, degree 8192, 60-40-40 bits, scale 2^40.
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40])
    context.global_scale = 2**40
    size = sum(value.nbytes for value in weights.values())
    started = time.perf_counter()
    sealed = {key: tenseal.ckks_vector(context, value.double().flatten().tolist()) for key, value in weights.items()}
    encrypting = time.perf_counter() - started
    started = time.perf_counter()
    sent = {key: value.serialize() for key, value in sealed.items()}
    packing = time.perf_counter() - started
    started = time.perf_counter()
    for key, value in sealed.items():
        sealed[key] = (value + value) * 0.5
    adding = time.perf_counter() - started
    started = time.perf_counter()
    opened = {key: value.decrypt() for key, value in sealed.items()}
    decrypting = time.perf_counter() - started
    error = max((torch.tensor(opened[key]) - value.flatten()).abs().max().item() for key, value in weights.items())
    times = sum(map(len, sent.values())) / size
    row = {"encrypt": encrypting, "pack": packing, "add": adding, "decrypt": decrypting, "times": times, "error": error}
    print(
        f"encrypt {encrypting:.1f} s, pack {packing:.1f} s, add one update {adding:.1f} s, decrypt {decrypting:.1f} s"
    )
    print(f"bytes: {times:.1f} times the weights; largest error {error:.1e}")
    print(json.dumps(row))


class _Peak:
    """Highest memory, by default of this process, above what there was at the start."""

    def __init__(self, measure: Callable[[], int] = lambda: psutil.Process().memory_info().rss) -> None:
        self._measure = measure

    def __enter__(self) -> _Peak:
        self._start = self.highest = self._measure()
        self._running = True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._running = False
        self._thread.join()

    def _watch(self) -> None:
        while self._running:
            self.highest = max(self.highest, self._measure())
            time.sleep(0.01)

    @property
    def megabytes(self) -> float:
        return (self.highest - self._start) / 1e6


if __name__ == "__main__":
    main()
