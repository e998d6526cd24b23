"""What is sent of one mask: a SEG, and beside it what a PACS without SEG, or a person in a hurry, can read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom import Dataset

from iopfl.core.measuring import measure
from iopfl.dicomio.captures import build_captures
from iopfl.dicomio.derived import Origin
from iopfl.dicomio.regions import build_regions
from iopfl.dicomio.report import build_report
from iopfl.dicomio.result_kinds import DISAGREEMENT
from iopfl.dicomio.segmentation import Segment, build_segmentation
from iopfl.dicomio.series import Series
from iopfl.dicomio.structures import build_structure_set


def build_results(
    kinds: Sequence[str],
    mask: np.ndarray,
    series: Series,
    segments: Sequence[Segment],
    origin: Origin,
    *,
    quality: float | None = None,
    disagreement: np.ndarray | None = None,
) -> list[Dataset]:
    """Build what is asked for of a mask, the segmentation first.

    A photograph gets no structure set, since it has no place in a patient.

    Args:
        kinds: as `check_kinds` gives them.
        mask: (X, Y, Z) label values on the series' grid.
        series: what was segmented.
        segments: all labels of the mask.
        origin: who or what made it.
        quality: agreement of the experts with it, 0 to 1; None where nobody asked for it.
        disagreement: (X, Y, Z) percent of the experts, for the kind of that name.

    Raises:
        SeriesError: the mask is on another grid, or holds a value that no segment has.
    """
    if mask.shape == series.shape:
        mask = series.from_frames(series.to_frames(mask))  # nothing is beside the frames, hence not measured either
    segmentation = build_segmentation(mask, series, segments, origin, as_label_map="label_map" in kinds)
    results = [segmentation]
    if "report" in kinds:
        labels = {segment.name: segment.value for segment in segments}
        sizes = measure(mask, labels, series.affine if series.has_geometry else None)
        results.append(build_report(segmentation, series, segments, sizes, origin, quality=quality))
    if "captures" in kinds:
        results.extend(build_captures(mask, series, segments, origin, quality=quality))
    if "structures" in kinds and series.has_geometry:
        results.append(build_structure_set(mask, series, segments, origin))
    if DISAGREEMENT in kinds and disagreement is not None:
        results.append(build_regions(disagreement, series, origin))
    return results
