"""Between a label's file on an image's grid and a DICOM SEG: both ways, by the tasks of this server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from pydicom import Dataset

from iopfl.base.errors import SeriesError
from iopfl.core.task import Task
from iopfl.core.transforms import read_label
from iopfl.dicomio.result_kinds import KINDS
from iopfl.dicomio.results import build_results
from iopfl.dicomio.segmentation import Origin, read_segmentation, segments_of
from iopfl.dicomio.series import Series
from iopfl.lib.label_log import LabelVersion

UNNAMED = "unnamed"
"""Content creator of a label whose annotator did not say who they are: without one it would count as automatic."""


def write_label(ds: Dataset, series: Series, tasks: Sequence[Task], target: Path) -> list[str]:
    """Write a SEG as NIfTI on its series' grid, with the values of the first task that has all its segments.

    Returns:
        Names of the tasks that it is a label for: those that have its segments, with the same values.

    Raises:
        SeriesError: it is of no task, of another series, or cannot be read; the message is of the last task.
    """
    problem = SeriesError("expected a task to read it for, this server has none")
    mask, found = None, []
    for task in tasks:
        try:
            read = read_segmentation(ds, series, task.labels, codes=task.codes).mask
        except SeriesError as error:
            problem = error
            continue
        mask = read if mask is None else mask
        if np.array_equal(read, mask):
            found.append(task.name)
    if mask is None:
        raise problem
    nib.save(nib.Nifti1Image(mask, series.affine), target)
    return found


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
