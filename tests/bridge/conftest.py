"""A tiny federation: three sites of synthetic images, a task and a network that train in a second."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iopfl.core.task import Task, read_task

TASK = """
base: prostate
name: disk
modality: OT
labels: {disk: 1}
slices: 1
size: [32, 32]
network:
  name: BasicUNet
  args: {features: [4, 4, 8, 8, 8, 4], norm: batch}
training: {local_steps: 4, batch_size: 2, min_labels: 4, validation_share: 0.25}
"""
SITES = ("ISBI_1.5", "north", "south")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.yaml"
    path.write_text(TASK)
    return path


@pytest.fixture
def task(task_file: Path) -> Task:
    return read_task(task_file)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of site folders; each site has another brightness."""
    for number, site in enumerate(SITES):
        write_site(tmp_path / "sites" / site, images=9, seed=number)
    return tmp_path / "sites"


def write_site(folder: Path, *, images: int, seed: int, labels: int | None = None) -> None:
    """Images of a bright disk on noise, the first `labels` of them labeled."""
    random = np.random.RandomState(seed)
    (folder / "labels" / "final").mkdir(parents=True)
    x, y = np.mgrid[:32, :32]
    for number in range(images):
        center, radius = random.uniform(10, 22, size=2), random.uniform(4, 9)
        disk = (x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2
        image = random.normal(60 + 20 * seed, 10, size=disk.shape) + 80 * disk
        name = f"case{number:02d}.png"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name)
        if labels is None or number < labels:
            Image.fromarray(disk.astype(np.uint8)).save(folder / "labels" / "final" / name)
