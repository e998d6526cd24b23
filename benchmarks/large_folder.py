"""How long requests take in a folder of many images: the start, a label, the next sample, the lists.

.venv/bin/python benchmarks/large_folder.py --images 1000 10000 100000
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from iopfl.compat import apply_tasks

_SHAPE = (28, 36, 5)
_REPEATS = 20
_LINKS = 50_000
"""Names that a file may have."""
_LABELED = 0.1
"""Share of images that have a label."""


def make_folder(folder: Path, count: int, seed: int) -> list[str]:
    """A folder of one small volume under many names, some of them labeled."""
    (folder / "labels" / "final").mkdir(parents=True)
    image, label = folder / "case000000.nii.gz", folder / "labels" / "final" / "case000000.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(seed).normal(60, 10, _SHAPE).astype(np.int16), np.eye(4)), image)
    nib.save(nib.Nifti1Image(np.ones(_SHAPE, np.uint8), np.eye(4)), label)
    names = [f"case{number:06d}" for number in range(count)]
    for number, name in enumerate(names[1:], start=1):
        if number % _LINKS:
            os.link(image, folder / f"{name}.nii.gz")
        else:
            image = Path(shutil.copy(image, folder / f"{name}.nii.gz"))
        if number < _LABELED * count:
            (folder / "labels" / "final" / f"{name}.nii.gz").symlink_to(label)
    return names


def measure(action: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Median seconds of an action."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def run(count: int, seed: int) -> dict[str, float]:
    """Seconds of each request in a folder of so many images."""
    from iopfl.core.task import Task
    from iopfl.labels.datastore import VersionedDatastore
    from iopfl.labels.final_rule import FinalRule
    from iopfl.labels.leases import LeaseStore, Offered
    from iopfl.lib.activelearning import RandomImage

    network = {"name": "UNet", "args": {"channels": [4, 8], "strides": [2], "norm": "batch"}}
    task = Task.from_dict(
        {"name": "disk", "labels": {"disk": 1}, "spatial_dims": 2, "size": [32, 32], "network": network}
    )
    with tempfile.TemporaryDirectory() as home:
        folder, chance = Path(home, "studies"), random.Random(seed)
        names = make_folder(folder, count, seed)
        options = {"tasks": {task.name: task}, "labels": Path(home, "labels"), "rule": FinalRule()}

        def start() -> VersionedDatastore:
            store = VersionedDatastore(folder, extensions=["*.nii.gz"], **options)
            store.repair()
            return store

        first, second = measure(start, 1), measure(start, 3)
        store, leases = start(), LeaseStore(Path(home, "leases.json"), minutes=30)
        label = Path(home, "label.nii.gz")

        def submit() -> None:
            mask = np.zeros(_SHAPE, np.uint8)
            mask[: chance.randrange(1, 20)] = 1
            nib.save(nib.Nifti1Image(mask, np.eye(4)), label)
            store.save_label(chance.choice(names), str(label), "final", {"client_id": "ann"})

        def sample() -> None:
            offered = Offered(store, {lease.image for lease in leases.active()}, task)
            chosen = RandomImage()({"strategy": "random"}, offered)["id"]
            leases.lend(chosen, "ann")
            store.update_image_info(chosen, {"strategy": {"random": {"ts": int(time.time())}}})

        return {
            "first start": first,
            "start": second,
            "submit": measure(submit),
            "sample": measure(sample),
            "status": measure(store.status),
            "list": measure(store.list_images),
            "all": measure(lambda: json.dumps(store.json()), 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000], metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    apply_tasks()
    about = f"seed {arguments.seed}, {_REPEATS} repeats, median; {_LABELED:.0%} labeled; {os.cpu_count()} cores"
    print(f"{about}, Python {platform.python_version()}; seconds")
    for number, count in enumerate(arguments.images):
        found = run(count, arguments.seed)
        if not number:
            print("| images | " + " | ".join(found) + " |\n| ---: |" + " ---: |" * len(found))
        print(f"| {count} | " + " | ".join(f"{seconds:.3f}" for seconds in found.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
