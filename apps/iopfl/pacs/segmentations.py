"""Between a label's file on an image's grid and a DICOM SEG: both ways, by the tasks of this server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from pydicom import Dataset

from iopfl.base.errors import SeriesError
from iopfl.core.task import Task
from iopfl.core.transforms import read_label
from iopfl.dicomio.files import read_dataset, reading
from iopfl.dicomio.result_kinds import KINDS
from iopfl.dicomio.results import build_results
from iopfl.dicomio.segmentation import Label, Origin, read_segmentation, segments_of
from iopfl.dicomio.series import Series
from iopfl.images.files import open_nifti, read_voxels
from iopfl.images.notes import FileNotes
from iopfl.labels.log import LabelVersion
from iopfl.labels.submissions import Submission

logger = logging.getLogger(__name__)

UNNAMED = "unnamed"
"""Content creator of a label whose annotator did not say who they are: without one it would count as automatic."""


def read_segmentation_file(path: Path) -> Dataset:
    """A SEG or structure set that somebody sent as a file.

    Raises:
        SeriesError: it cannot be read.
    """
    with reading("the segmentation"):
        return read_dataset(path) or Dataset()


def write_label(ds: Dataset, series: Series, tasks: Sequence[Task], target: Path) -> list[str]:
    """Write a SEG as NIfTI on its series' grid, with the values of the first task of which it has something drawn.

    Returns:
        Names of the tasks that it is a label for: those that have its segments, with the same values.

    Raises:
        SeriesError: it is of no task, of another series, or cannot be read; the message is of the last task.
    """
    problem = SeriesError("expected a task to read it for, this server has none")
    labels: dict[str, Label] = {}
    for task in tasks:
        try:
            labels[task.name] = read_segmentation(ds, series, task.labels, codes=task.codes)
        except SeriesError as error:
            problem = error
    if not labels:
        raise problem
    drawn = [name for name, label in labels.items() if label.mask.any()]
    first = next(iter([*drawn, *labels]))
    mask = labels[first].mask
    for note in labels[first].notes:
        logger.warning("segmentation %s: %s", ds.SOPInstanceUID, note)
    nib.save(nib.Nifti1Image(mask, series.affine), target)
    found = [name for name, label in labels.items() if np.array_equal(label.mask, mask)]
    if others := [name for name in drawn if name not in found]:
        logger.warning(
            "segmentation %s is read for %s alone, not for %s too", ds.SOPInstanceUID, first, ", ".join(others)
        )
    return found


def count_beside(taken: Submission, image: Path, read: Callable[[], Series]) -> Submission:
    """A label with how much of it lies beside the frames of its series, whose slices shift: no SEG has that.

    Args:
        taken: the label, on the grid of its image.
        image: the file that the series was made into.
        read: reads the series, which is asked for only where that can be.
    """
    if not FileNotes.of(open_nifti(image).header.extensions).shifts:
        return taken
    mask = read_voxels(taken.file, colors=False).as_tensor()[0].numpy()
    return replace(taken, beside=int(np.count_nonzero(mask) - np.count_nonzero(read().to_frames(mask))))


def build_label(
    label: Path,
    series: Series,
    task: Task,
    version: LabelVersion,
    *,
    results: Sequence[str] = KINDS[:1],
    disagreement: np.ndarray | None = None,
) -> list[Dataset]:
    """Build what is stored of a submitted label, the SEG first.

    Args:
        label: its file.
        series: what it was drawn on.
        task: whose values the label has.
        version: who drew it, and what it started from.
        results: kinds of what is stored.
        disagreement: (X, Y, Z) percent of the experts, for the kind of that name.
    """
    values = np.array(task.label_values, np.uint8)
    grid = MetaTensor(torch.empty(1, *series.shape, dtype=torch.uint8), affine=torch.from_numpy(series.affine))
    classes = read_label(label, task, like=grid)[0].as_tensor().long().numpy()
    started = version.origin
    origin = Origin(
        algorithm=f"iopfl {task.name}" if started.get("model") else "",
        version=f"bank {started.get('bank', '')}, {started.get('model', '')}" if started else "",
        annotator=version.annotator or UNNAMED,
        description=task.description or task.name,
    )
    mask = values[classes]
    return build_results(results, mask, series, segments_of(task), origin, disagreement=disagreement)
