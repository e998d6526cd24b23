"""Where the experts of a bank disagree, as a second SEG of one segment, "check here", for any viewer that shows SEG.

It is no label of anything: an algorithm alone made it, so that no label server trains on it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydicom import Dataset
from pydicom.sr.codedict import codes

from iopfl.core.disagreement import CHECK_COLOR, CHECK_HERE, find_regions
from iopfl.dicomio.derived import Origin
from iopfl.dicomio.segmentation import Segment, build_segmentation
from iopfl.dicomio.series import Series

SERIES_NUMBER = 9004

_SEGMENT = Segment(
    1, CHECK_HERE, CHECK_COLOR, codes.DCM.RegionInSpace, category=codes.cid7150.SpatialAndRelationalConcept
)


def build_regions(disagreement: np.ndarray, series: Series, origin: Origin) -> Dataset:
    """Build the SEG of the regions to check; where there is none, it says so with an empty frame.

    Args:
        disagreement: (X, Y, Z) uint8, percent of the experts, on the series' grid.
        series: what was segmented.
        origin: what made the mask; whoever corrected that has no part in this.

    Raises:
        SeriesError: it is on another grid.
    """
    regions = find_regions(disagreement, series.affine if series.has_geometry else None)
    made = replace(
        origin,
        algorithm=origin.algorithm or "iopfl",  # what a person drew by hand has experts too
        annotator="",
        description=f"{CHECK_HERE}, {origin.description or origin.algorithm}",
    )
    ds = build_segmentation(regions, series, [_SEGMENT], made)
    ds.SeriesNumber, ds.ContentLabel = SERIES_NUMBER, "CHECK_HERE"
    return ds
