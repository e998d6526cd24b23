"""Large volumes: memory and seconds of an answer from the command, the label server and the DICOM listener.

    python benchmarks/large_volumes.py --slices 600

A CT of 512 x 512 voxels of 0.8 mm a slice, five labels and a bank of four experts, through a 2.5D network (the
prostate's) and a 3D one (the hippocampus's, at 1 mm), by one model and by the mixture. The image is noise with five
bright ellipsoids, and the networks find them, so that a mask is as large as people's. A row is the peak memory and the
CPU seconds of the process that answered, from its start or the first instance to the mask or the segmentation; beside
them stand the model's own passes, some of which are timed in a process of their own, and what the answer took beyond
those. Rows that are there are kept: interrupted, the same command goes on.

All else than the passes does not depend on the network. So `--thin 4` has networks of a quarter of the channels
answer, takes their passes off, and puts the whole network's in their place, as they are timed by themselves: seconds
and memory.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "apps"), str(ROOT), str(Path(__file__).parent)]

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import requests  # noqa: E402
import torch  # noqa: E402

from app.site import APP, conf_of  # noqa: E402
from dicomio.phantoms import build_slices  # noqa: E402
from dimse.nodes import HERE, storage_peer  # noqa: E402
from iopfl.base.allocation import keep_blocks  # noqa: E402
from iopfl.core.bank.bank import Model, Role, save_bank  # noqa: E402
from iopfl.core.bank.signing import Keyring  # noqa: E402
from iopfl.core.inference import count_windows  # noqa: E402
from iopfl.core.networks import build_network  # noqa: E402
from iopfl.core.planning import count_views  # noqa: E402
from iopfl.core.task import Task, read_task  # noqa: E402
from iopfl.core.transforms import Preprocessing, read_image  # noqa: E402
from iopfl.core.weights import snapshot  # noqa: E402
from iopfl.dimse.peers import Peer  # noqa: E402
from iopfl.dimse.queue import State, list_jobs  # noqa: E402
from iopfl.dimse.scu import Caller, list_instances, send  # noqa: E402
from label_server import running_server, start_process, stop_process, wait_until  # noqa: E402
from orthanc import free_port  # noqa: E402

LABELS = {f"organ_{number}": number for number in range(1, 6)}
BASES = {"2.5D": "prostate", "3D": "hippocampus"}
SITES = ("site_a", "site_b", "site_c")
WAYS = ("command", "server", "listener")
SPACING = (0.8, 0.8, 1.0)
ORGANS = {
    300: (0.3, 0.3, 0.35),
    600: (0.7, 0.3, 0.4),
    900: (0.5, 0.5, 0.5),
    1200: (0.3, 0.7, 0.6),
    1500: (0.7, 0.7, 0.65),
}
"""How much brighter they are than the rest, and where, in shares of the edges."""
SHIFT = 4.0
"""Keeps brightness, normalized, above 0 through ReLUs."""
TIMED = 24
"""Passes that are measured, of which the first are not counted: caches fill."""
LONGEST = 4 * 3600.0


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="pixels of an edge (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=600, help="(default: %(default)s)")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--models", nargs="*", choices=("plain", "routed"), default=["plain", "routed"])
    parser.add_argument("--networks", nargs="*", choices=list(BASES), default=list(BASES))
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: %(default)s)")
    parser.add_argument("--thin", type=int, default=1, help="divide the networks' channels (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results/large_volumes.json"))
    parser.add_argument("--passes", metavar="TASK_FILE", help=argparse.SUPPRESS)  # the process that times them
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    torch.set_num_threads(arguments.threads)
    if arguments.passes:
        print(json.dumps(_time_passes(read_task(arguments.passes))))
        return
    rows = json.loads(arguments.out.read_text()) if arguments.out.is_file() else []
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {arguments.threads} thread(s) each")
    if arguments.thin > 1:
        print(f"networks of 1/{arguments.thin} of the channels answered; GB, CPU s and passes are those of whole ones")
    print(f"{'':<42}{'peak GB':>9}{'CPU s':>9}{'passes':>8}{'their s':>9}{'beyond':>8}{'wall s':>9}")
    shape = [arguments.size, arguments.size, arguments.slices]
    with tempfile.TemporaryDirectory() as common:
        make = functools.cache(lambda network: _make(Path(common) / network, network, shape, arguments.thin))
        for network, model, way in itertools.product(arguments.networks, arguments.models, arguments.ways):
            key = {"network": network, "model": model, "way": way, "shape": shape}
            key |= {"threads": arguments.threads, "thin": arguments.thin}
            row = next((row for row in rows if key.items() <= row.items()), None)
            if row is None:
                with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
                    row = key | _measure(Path(folder), stack, make(network), model, way, arguments.threads)
                rows.append(row)
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(rows, indent=1))
            name = f"{way}, {network}, {model}, {'x'.join(map(str, shape))}"
            beyond = row["cpu_seconds"] / row["pass_seconds"] - 1
            print(
                f"{name:<42}{row['peak_bytes'] / 1e9:>9.2f}{row['cpu_seconds']:>9.0f}{row['passes']:>8}"
                f"{row['pass_seconds']:>9.0f}{beyond:>8.0%}{row['wall_seconds']:>9.0f}",
                flush=True,
            )


@dataclass(frozen=True)
class _Made:
    """What the rows of one network have in common.

    Attributes:
        whole: the task, with all channels of its network.
        task: the one whose network answers.
        shape: (X, Y, Z) of the image.
        image: its file, a NIfTI.
        bank: a bank of the task's experts.
        windows: the passes of one view of the image.
    """

    whole: Task
    task: Task
    shape: list[int]
    image: Path
    bank: Any
    windows: int


def _make(folder: Path, network: str, shape: list[int], thin: int) -> _Made:
    whole = replace(
        read_task(BASES[network]), name="organs", labels=LABELS, codes={}, regions={}, modality="CT", subject=""
    )
    features = [max(1, width // thin) for width in whole.network.args["features"]]
    task = replace(whole, network=replace(whole.network, args={**whole.network.args, "features": features}))
    folder.mkdir()
    image = folder / "abdomen.nii.gz"
    _write_volume(image, shape)
    volume = Preprocessing(task)(read_image(image, task))
    return _Made(whole, task, shape, image, _make_bank(folder / "bank", task, volume), count_windows(volume, task))


def _measure(folder: Path, stack: ExitStack, made: _Made, model: str, way: str, threads: int) -> Any:
    task, windows = made.task, made.windows
    studies = folder / "studies"
    studies.mkdir()
    image = studies / made.image.name
    os.link(made.image, image)
    run: Callable[..., Any] = {"command": _by_command, "server": _by_server, "listener": _by_listener}[way]
    cost = run(folder, stack, made.bank, image, task, "routed" if model == "routed" else "global", made.shape)
    passes = windows * (count_views(task.adaptation.effective, windows) if model == "routed" else 1)
    if model == "routed":  # the experts' votes
        settings = task.adaptation
        looks = len(settings.shares) + (len(settings.zooms) - 1 if task.spacing is None and passes > windows else 0)
        passes += looks * (len(SITES) + 1) * settings.max_instances
    own, timed = (_have_timed(folder, which, threads) for which in (task, made.whole))
    cost["cpu_seconds"] += passes * (timed["seconds"] - own["seconds"])
    cost["peak_bytes"] += timed["bytes"] - own["bytes"]
    return {**cost, "passes": passes, "pass_seconds": passes * timed["seconds"]}


def _have_timed(folder: Path, task: Task, threads: int) -> Any:
    """What `_time_passes` finds, in a process of its own."""
    (folder / "task.yaml").write_text(json.dumps(task.to_dict()))
    words = [sys.executable, __file__, "--passes", str(folder / "task.yaml"), "--threads", str(threads)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def _make_bank(folder: Path, task: Task, volume: torch.Tensor) -> Any:
    """Experts that find the organs, and differ by a hundredth in every weight, as those of one federation do."""
    whole = _find_organs(task, volume)
    models = [Model("", Role.GLOBAL, 2, 30, {}, whole)]
    for seed, site in enumerate(SITES):
        random = torch.Generator().manual_seed(seed)
        own = {
            key: value * (1 + 0.01 * torch.randn(value.shape, generator=random)) if value.is_floating_point() else value
            for key, value in whole.items()
        }
        models.append(Model(site, Role.PERSONALIZED, 2, 10, {"dice": 0.5, "dice_global": 0.4}, own))
    return save_bank(folder, models, task=task, federation="benchmark", keys=Keyring(folder.parent / "keys"))


def _find_organs(task: Task, volume: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights by which a voxel is of the organ that is closest in brightness, after smoothing; the rest is random.

    Noise in every slice, as random networks give it, makes a segmentation several times as large as people's.
    """
    network = build_network(task, seed=0)
    weights = snapshot(network)
    box = 3.0**-task.spatial_dims
    for block in ("conv_0", "upcat_1.convs"):
        for number in (0, 1):
            kernel = weights[f"{block}.conv_{number}.conv.weight"]
            kernel[0] = 0
            kernel[0, kernel.shape[1] // 2 if (block, number) == ("conv_0", 0) else 0] = box
            weights[f"{block}.conv_{number}.conv.bias"][0] = 0
    weights["conv_0.conv_0.conv.bias"][0] = SHIFT
    sizes = volume.shape[1:]
    shares = [[0.5, 0.95, 0.5], *([1 - place for place in where[:2]] + [where[2]] for where in ORGANS.values())]
    places = [[round(share * edge) for share, edge in zip(each, sizes, strict=True)] for each in shares]
    parts = [volume[0, x - 2 : x + 3, y - 2 : y + 3, z - 2 : z + 3] for x, y, z in places]
    levels = torch.stack([part.median() for part in parts]) + SHIFT
    weights["final_conv.weight"].zero_()[:, 0] = 20 * levels.view(-1, *[1] * task.spatial_dims)
    weights["final_conv.bias"][:] = -10 * levels.square()
    return weights


def _draw_volume(shape: list[int]) -> np.ndarray:
    """Noise of Hounsfield units around 40, in each slice the same, moved on; and the organs, a percent each."""
    noise = np.random.default_rng(0).normal(40, 30, shape[:2]).astype(np.int16)
    voxels = np.empty(shape, np.int16, order="F")
    x, y = np.ogrid[: shape[0], : shape[1]]
    for z in range(shape[2]):
        voxels[..., z] = np.roll(noise, z * 37)
        for brightness, (left, back, low) in ORGANS.items():
            squares = ((x / shape[0] - left) / 0.09) ** 2 + ((y / shape[1] - back) / 0.09) ** 2
            voxels[squares + ((z / shape[2] - low) / 0.3) ** 2 < 1, z] += brightness
    return voxels


def _write_volume(path: Path, shape: list[int]) -> None:
    nib.save(nib.Nifti1Image(_draw_volume(shape), np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])), path)


def _time_passes(task: Task) -> dict[str, float]:
    """CPU seconds of one pass of a task's network over a slice or a window, and what passes take of memory."""
    keep_blocks()
    plain = build_network(task, seed=0).eval()
    window = torch.randn(4, task.in_channels, *task.size)
    if task.spatial_dims == 2:
        window = window.contiguous(memory_format=torch.channels_last)
    process = psutil.Process()
    before = process.memory_info().rss
    with torch.inference_mode():
        for _ in range(2):
            plain(window).softmax(1)
        started = _cpu_of(process)
        for _ in range(TIMED // 4):
            plain(window).softmax(1)
    return {"seconds": (_cpu_of(process) - started) / TIMED, "bytes": _peak_of(process) - before}


def _cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _peak_of(process: psutil.Process) -> int:
    """VmHWM, in bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _by_command(folder: Path, stack: ExitStack, bank: Any, image: Path, task: Task, model: str, shape: Any) -> Any:
    words = [sys.executable, "-m", "iopfl.cli", "segment", str(image), "--bank", str(bank.folder), "-o", str(folder)]
    words += ["--model", model, "--keys", str(bank.folder.parent / "keys")]
    started = time.monotonic()
    process = subprocess.Popen(words)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"iopfl segment ended with {status}")
    return {
        "peak_bytes": usage.ru_maxrss * 1024,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "system_seconds": usage.ru_stime,
        "wall_seconds": time.monotonic() - started,
    }


def _by_server(folder: Path, stack: ExitStack, bank: Any, image: Path, task: Task, model: str, shape: Any) -> Any:
    server = stack.enter_context(running_server(APP, image.parent, state=folder / "state", conf=conf_of(bank)))
    process = psutil.Process(server.pid)
    before, started = process.cpu_times(), time.monotonic()
    name = f"{task.name}_routed" if model == "routed" else task.name
    address = f"{server.url}/infer/{name}?image=abdomen&output=image"
    asked = {"params": json.dumps({"answer_from": "global"})}
    requests.post(address, data=asked, timeout=LONGEST).raise_for_status()
    return _cost(process, before, started)


def _by_listener(folder: Path, stack: ExitStack, bank: Any, image: Path, task: Task, model: str, shape: Any) -> Any:
    pacs = stack.enter_context(storage_peer()).peer
    answer = f"{task.name}_routed" if model == "routed" else task.name
    rules = {
        "rules": [{"answer": answer, "send_to": ["pacs"]}],
        "destinations": {"pacs": {"ae_title": pacs.ae_title, "host": pacs.host, "port": pacs.port}},
    }
    (folder / "rules.yaml").write_text(json.dumps(rules))
    port, log = free_port(), folder / "listen.log"
    words = ["--rules", folder / "rules.yaml", "--bank", bank.folder, "--keys", bank.folder.parent / "keys"]
    words += ["--state", folder, "--port", port, "--quiet-seconds", 2]
    listener = start_process([sys.executable, "-m", "iopfl.cli", "dicom", "listen", *map(str, words)], log)
    stack.callback(stop_process, listener)
    wait_until(lambda: "listens on" in log.read_text(), 300, what=f"the listener, see {log}")
    process = psutil.Process(listener.pid)
    before, started = process.cpu_times(), time.monotonic()
    files = []
    (folder / "series").mkdir()
    for number, ds in enumerate(build_slices(_draw_volume(shape) + 1024, spacing=SPACING)):
        files.append(folder / "series" / f"{number:04d}.dcm")
        ds.RescaleSlope, ds.RescaleIntercept, ds.Modality = 1, -1024, "CT"
        ds.save_as(files[-1], enforce_file_format=True)
    if not all(sent.is_taken for sent in send(Caller(Peer("IOPFL", HERE, port)), list_instances(files))):
        raise RuntimeError("an instance was not taken")

    def finished() -> bool:
        jobs = list_jobs(folder / "dimse" / "queue")
        failed = [job.reason for job in jobs if job.state in (State.REFUSED, State.FAILED)]
        if failed:
            raise RuntimeError(failed[0])
        return any(job.state is State.DONE for job in jobs)

    wait_until(finished, LONGEST, what="the segmentation")
    return _cost(process, before, started)


def _cost(process: psutil.Process, before: Any, started: float) -> dict[str, float]:
    after = process.cpu_times()
    return {
        "peak_bytes": _peak_of(process),
        "cpu_seconds": after.user + after.system - before.user - before.system,
        "system_seconds": after.system - before.system,
        "wall_seconds": time.monotonic() - started,
    }


if __name__ == "__main__":
    main()
