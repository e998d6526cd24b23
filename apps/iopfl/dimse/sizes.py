"""How large the labels are that the listener segmented, as a table of all that is in its queue."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iopfl.base.errors import SeriesError
from iopfl.core.measuring import measure
from iopfl.dicomio.files import read_dataset, reading
from iopfl.dicomio.segmentation import read_segmentation
from iopfl.dicomio.series import read_series
from iopfl.dimse.queue import Job

_COLUMNS = ("series", "study", "answer", "rule", "state", "changed", "label", "volume_ml", "long_axis_mm")
_IN_PIXELS = ("pixels", "long_axis_pixels")
"""Of photographs, which have no millimeters."""


def write_sizes(folder: Path, jobs: Iterable[Job], target: Path) -> None:
    """Write volume and long axis of each label of each series that was segmented and is still here.

    A line has the series' and study's UIDs and nothing of the patient; `problem` says why there are no figures.

    Args:
        folder: the service's folder.
        jobs: the jobs of its queue.
        target: a CSV file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, (*_COLUMNS, *_IN_PIXELS, "problem"))
        table.writeheader()
        for job in jobs:
            table.writerows(_rows(folder, job) if job.segmentation else [])
            file.flush()


def _rows(folder: Path, job: Job) -> list[dict[str, Any]]:
    about = {
        "series": job.series_instance_uid,
        "study": job.study_instance_uid,
        "answer": job.answer,
        "rule": job.rule,
        "state": str(job.state),
        "changed": job.changed[:19],
    }
    try:
        with reading("the segmentation"):
            ds = read_dataset(folder / "outbox" / f"{job.segmentation}.dcm")
        if ds is None:
            raise SeriesError("the segmentation is damaged: send the series again")
        series = read_series(sorted((folder / "series" / job.series_instance_uid).glob("*.dcm")))
        label = read_segmentation(ds, series)
    except SeriesError as error:
        return [{**about, "problem": str(error)}]
    values = {name: value for value, name in label.names.items()}
    sizes = measure(label.mask, values, series.affine if series.has_geometry else None)
    return [{**about, "label": size.label, **size.to_params()} for size in sizes]
