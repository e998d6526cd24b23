"""Labels of a small site folder: what is opened, drawn, submitted and read."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from iopfl.labels.final_rule import FinalRule

from .site import GLAND, oblique_affine

IMAGE = "case08"
SHAPE = (28, 36, 5)


def open_store(
    studies: Path, rule: str = "newest", *, task=GLAND, more=(), extensions: tuple[str, ...] = ("*.nii.gz", "*.png")
):
    """The datastore as a server opens it."""
    from iopfl.labels.datastore import VersionedDatastore

    return VersionedDatastore(
        str(studies),
        extensions=list(extensions),
        tasks={task.name: task, **dict(more)},
        labels=studies.parent / "state" / "labels",
        rule=FinalRule.parse(rule),
    )


def draw(path: Path, columns: slice, *, value: int = 2) -> Path:
    """A label in which some columns are drawn."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[columns] = value
    nib.save(nib.Nifti1Image(mask, oblique_affine()), path)
    return path


def submit(store, label: Path, annotator: str, image: str = IMAGE, **info):
    return store.submit(image, label, {"client_id": annotator, **info})


def final(studies: Path, image: str = IMAGE) -> np.ndarray | None:
    """What training would read."""
    path = studies / "labels" / "final" / f"{image}.nii.gz"
    return np.asarray(nib.load(path).dataobj) if path.exists() else None


def columns_of(mask: np.ndarray | None) -> list[int]:
    return [] if mask is None else sorted(set(np.nonzero(mask)[0].tolist()))
