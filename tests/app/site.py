"""A site that fits into a blink: oblique volumes or pictures of a bright disk, and a bank of random tiny networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
from PIL import Image

from core.tiny import DISK, make_models
from iopfl.core.bank.bank import ModelBank, save_bank
from iopfl.core.bank.signing import Keyring
from iopfl.core.task import Task, Training
from label_server import PACKAGES, LabelServer, running_server, wait_until

APP = PACKAGES / "iopfl"
SITES = ("site_a", "site_b")
CHILD_SECONDS = 90.0

_SETTINGS = Training(batch_size=4, learning_rate=1e-2, min_labels=4, validation_share=0.3, augment=False)
GLAND = replace(DISK, name="gland", labels={"gland": 2}, slices=3, training=_SETTINGS)
"""Volumes through a 2.5D network, and a label value that is not 1."""
SPOT = replace(DISK, name="spot", labels={"spot": 255}, modality="OT", training=_SETTINGS)
"""Pictures, with the label value that drawing programs write."""


def oblique_affine() -> np.ndarray:
    """0.8 x 0.9 x 3 mm, turned about all three axes, left to right reversed."""
    x, y, z = 0.3, -0.2, 0.15
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    affine = np.eye(4)
    affine[:3, :3] = np.array(about_x) @ about_y @ about_z @ np.diag([-0.8, 0.9, 3.0])
    affine[:3, 3] = [31.5, -12.25, 7.0]
    return affine


def draw_disk(shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image of a bright disk, and where the disk is."""
    random = np.random.default_rng(seed)
    x, y = np.mgrid[: shape[0], : shape[1]]
    center = random.uniform(0.4, 0.6, size=2) * shape
    disk = (x - center[0]) ** 2 + (y - center[1]) ** 2 < random.uniform(5, 8) ** 2
    return random.normal(60, 10, shape) + 100 * disk, disk


def write_scan(folder: Path, name: str, seed: int, *, labeled: bool, task: Task = GLAND) -> None:
    """Write a volume of 28 x 36 x 5 voxels, and its label."""
    image, disk = draw_disk((28, 36), seed)
    value = next(iter(task.labels.values()))
    volume = np.repeat(image[..., None], 5, axis=2).astype(np.int16)
    label = np.repeat(disk[..., None], 5, axis=2).astype(np.uint8) * value
    (folder / "labels" / "final").mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, oblique_affine()), folder / f"{name}.nii.gz")
    if labeled:
        nib.save(nib.Nifti1Image(label, oblique_affine()), folder / "labels" / "final" / f"{name}.nii.gz")


def write_scans(folder: Path, *, labeled: int = 8, unlabeled: int = 3) -> Path:
    """Write a site folder of volumes; the last ones have no label."""
    for number in range(labeled + unlabeled):
        write_scan(folder, f"case{number:02d}", number, labeled=number < labeled)
    return folder


def write_picture(path: Path, seed: int, shape: tuple[int, int] = (40, 60), *, color: bool = False) -> None:
    """Write a picture, `shape` wide and high."""
    image = draw_disk(shape, seed)[0].clip(0, 255).astype(np.uint8).T
    Image.fromarray(np.stack([image] * 3, -1) if color else image).save(path)


def make_site_bank(folder: Path, task: Task, *, sites: tuple[str, ...] = SITES, keys: Path | None = None) -> ModelBank:
    """Save a bank of random networks, signed with keys beside it unless others are given.

    By its metrics each site's personalized model is better than the global one.
    """
    metrics = {"dice": 0.5, "dice_global": 0.4}
    keys = Keyring(keys or folder.parent / "keys")
    return save_bank(folder, make_models(task, sites, **metrics), task=task, federation="tests", keys=keys)


def conf_of(bank: ModelBank, site: str = "site_a") -> dict[str, Any]:
    """The `--conf` that serves a bank of `make_site_bank`."""
    values = {"bank": bank.folder, "keys": bank.folder.parent / "keys", "site": site}
    return {key: value for key, value in values.items() if value}


@contextmanager
def serving(studies: Path, bank: ModelBank, *, site: str = "site_a", state: Path) -> Iterator[LabelServer]:
    """The project's own app in a server of its own, its temporary files in the state folder."""
    (state / "tmp").mkdir(parents=True, exist_ok=True)
    env = {"TMPDIR": str(state / "tmp")}
    with running_server(APP, studies, state=state, conf=conf_of(bank, site), env=env) as server:
        yield server


def finish(server: LabelServer, path: str = "/train/") -> dict[str, Any]:
    """Wait for the last task of one kind, and return its record."""

    def record() -> dict[str, Any] | None:
        task = server.get(path).json()
        return task if task["status"] not in ("SUBMITTED", "RUNNING") else None

    return wait_until(record, CHILD_SECONDS, what=f"{path} to finish")


def await_line(server: LabelServer, words: str, path: str = "/train/") -> str:
    """Wait for a line of output of the task that runs."""

    def line() -> str | None:
        task = server.get(path).json()
        assert task["status"] in ("SUBMITTED", "RUNNING"), task
        return next((line for line in task.get("details", []) if words in line), None)

    return wait_until(line, CHILD_SECONDS, what=f"{words!r} in the task's details")


def read_answer(response: requests.Response) -> dict[str, Any]:
    """The `params` of an inference asked for with output=json."""
    assert response.ok, response.text
    values = response.json()
    return values.get("params", values)
