"""Speed: seconds, forward-equivalents and memory of every way to run a bank.

    python benchmarks/speed.py --threads 2

All sides run in one process on the same random weights and images: 256 x 256
with the vessel network at batch 1 and 16, and a 40-slice 384 x 384 volume with
the prostate network; four experts. A forward-equivalent is one pass of the
plain network over the same images, by torch's FlopCounterMode.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from iopfl.core.adaptation import RoutingAdapter
from iopfl.core.inference import predict
from iopfl.core.networks import build_network
from iopfl.core.published import adapt_published, predict_published
from iopfl.core.routing import RoutedConv, RoutedNetwork, route_network
from iopfl.core.task import Task, read_task
from iopfl.core.weights import Weights, snapshot

EXPERTS = 4
SCENES = {
    "vessel 256 x 256, batch 1": ("vessel", (3, 256, 256, 1)),
    "vessel 256 x 256, batch 16": ("vessel", (3, 256, 256, 16)),
    "prostate 384 x 384, 40 slices": ("prostate", (1, 384, 384, 40)),
}


def build_sides(task: Task, volume: Tensor, experts: list[Weights], device: str) -> dict[str, Callable[[], object]]:
    """Every way to run these experts over this volume, by name."""
    plain = build_network(task)
    plain.load_state_dict(experts[0])
    series = route_network(plain, experts)
    folded = series.fold()
    grouped = route_network(plain, experts, router="sample", normalization=False)
    looped = _without_groups(route_network(plain, experts, router="sample", normalization=False))
    adapter = RoutingAdapter(route_network(plain, experts), task, device=device)

    def default() -> None:
        adapter(volume).predict(volume, task, device=device)

    def published() -> None:
        routed = adapt_published(plain, experts, [volume], task, device=device)
        predict_published(routed, volume, task, device=device)

    def run(network: torch.nn.Module) -> Callable[[], object]:
        return lambda: predict(network, volume, task, device=device)

    return {
        "plain": run(plain),
        "folded": run(folded),
        "series-routed": run(series),
        "per-sample, grouped": run(grouped),
        "per-sample, loop": run(looped),
        "default, with adaptation": default,
        "published, with adaptation": published,
    }


def _without_groups(routed: RoutedNetwork) -> RoutedNetwork:
    for layer in routed.routed_layers().values():
        if isinstance(layer, RoutedConv):
            layer.grouped = False
    return routed


def measure(side: Callable[[], object], repeats: int, device: str) -> tuple[float, float]:
    """Median seconds, and peak memory above the start in MB (the device's, or this process's)."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with _Peak() as peak:
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            side()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
    used = torch.cuda.max_memory_allocated() - before if device == "cuda" else peak.used
    return statistics.median(seconds), used / 2**20


class _Peak:
    """Peak resident memory of this process, sampled every 5 ms."""

    def __enter__(self) -> _Peak:
        self._process = psutil.Process()
        self._start = self._highest = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def used(self) -> int:
        return self._highest - self._start

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._highest = max(self._highest, self._process.memory_info().rss)


def main() -> None:
    """Run the benchmark."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of all but adaptation (default: %(default)s)")
    parser.add_argument("--scenes", nargs="*", choices=list(SCENES), default=list(SCENES))
    parser.add_argument("--skip-published", action="store_true", help="it takes minutes for the volume")
    parser.add_argument("--out", type=Path, default=Path("results/speed.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    settings = {"torch": torch.__version__, "processor": platform.processor(), **vars(arguments)}
    print(json.dumps(settings, default=str))
    rows = []
    for scene in arguments.scenes:
        name, shape = SCENES[scene]
        task = read_task(name)
        experts = [snapshot(build_network(task, seed=seed)) for seed in range(EXPERTS)]
        volume = torch.randn(shape)
        print(f"\n{scene}, {EXPERTS} experts\n{'':<30}{'s':>9}{'s/image':>9}{'forwards':>10}{'peak MB':>9}", flush=True)
        with FlopCounterMode(display=False) as forward:
            predict(build_network(task), volume, task, device=arguments.device)
        for side_name, side in build_sides(task, volume, experts, arguments.device).items():
            adapting = "adaptation" in side_name
            if side_name.startswith("published") and arguments.skip_published:
                continue
            with FlopCounterMode(display=False) as counter:
                side()  # warms up too
            seconds, memory = measure(side, 1 if adapting else arguments.repeats, arguments.device)
            forwards = counter.get_total_flops() / forward.get_total_flops()
            row = {"scene": scene, "side": side_name, "seconds": seconds, "forwards": forwards, "peak_mb": memory}
            rows.append(row)
            print(f"{side_name:<30}{seconds:9.3f}{seconds / shape[-1]:9.3f}{forwards:10.2f}{memory:9.0f}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"settings": settings, "rows": rows}, default=str, indent=1))


if __name__ == "__main__":
    main()
