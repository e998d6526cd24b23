"""Which image a segmentation in the PACS was drawn on: by what it names, its frames' sources, or its place."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from pydicom import Dataset

from iopfl.base.errors import SeriesError
from iopfl.dicomio.frames import find_plane
from iopfl.dicomio.segmentation import SegmentationError
from iopfl.dicomio.sources import all_referenced_series, referenced_instances
from iopfl.pacs.access import PACS, FoundSeries

logger = logging.getLogger(__name__)


def find_image(pacs: PACS, ds: Dataset, segmentation: FoundSeries, images: Mapping[str, FoundSeries]) -> str:
    """Series Instance UID of the image that a segmentation was drawn on; "" where that is not known.

    Args:
        pacs: that has both.
        ds: the segmentation's header.
        segmentation: its series.
        images: the listed series, by their UID.

    Raises:
        SegmentationError: the header is broken.
        PACSError: the PACS cannot be asked.
    """
    named = all_referenced_series(ds)
    if named:
        return min(named & images.keys() or named)
    uid = str(ds.SOPInstanceUID)
    in_study = [series for series in images.values() if series.study == segmentation.study]
    instances = referenced_instances(ds)
    if instances:
        found = pacs.find_series_of(instances, segmentation.study, in_study)
        if not found:
            logger.warning("segmentation %s is passed over for now: the images it was drawn on are not listed", uid)
        return found
    fitting = [
        series.uid for series in in_study if any(_lies_on(ds, image) for image in pacs.read_first_headers(series))
    ]
    if len(fitting) != 1:
        fits = f"{len(fitting)} listed series of its study fit its place" if fitting else "none fits its place"
        logger.warning(
            "segmentation %s is passed over: it does not say which series it was drawn on, and %s", uid, fits
        )
        return ""
    logger.info("segmentation %s names no series: by its place it is of %s", uid, fitting[0])
    return fitting[0]


def _lies_on(ds: Dataset, image: Dataset) -> bool:
    """Whether a segmentation has an image's frame of reference, directions and pixels."""
    frame_of_reference = str(ds.get("FrameOfReferenceUID") or "")
    if not frame_of_reference or image.get("FrameOfReferenceUID") != frame_of_reference:
        return False
    try:
        plane, other = find_plane(ds), find_plane(image)
        sizes = [(int(each.Rows), int(each.Columns)) for each in (ds, image)]
    except (SeriesError, SegmentationError, AttributeError, TypeError, ValueError):
        return False
    return sizes[0] == sizes[1] and plane.is_parallel(other) and np.allclose(plane.spacing, other.spacing, rtol=1e-3)
