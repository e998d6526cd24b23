"""A mask out of a radiotherapy structure set (RTSTRUCT): closed contours, filled slice by slice.

Source: PS3.3 C.8.8.6. A pixel is inside when its center is, by the even-odd rule, so that a contour within
another is a hole, and a keyhole contour leaves its hole open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydicom import Dataset

from iopfl.dicomio.geometry import LPS_TO_RAS
from iopfl.dicomio.labels import Described, Drawn, SegmentationError, check_value, fill, find_label
from iopfl.dicomio.series import Series

OFF_PLANE = 0.25
"""Share of the slice distance by which a contour may lie beside the slice that it is drawn on."""

_MARKS = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")  # have no inside


def find_series(ds: Dataset) -> set[str]:
    """Series Instance UIDs of the images that a structure set was drawn on."""
    return {
        str(series.get("SeriesInstanceUID"))
        for frame in ds.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    }


def find_frame_of_reference(ds: Dataset) -> str:
    """The frame of reference of a structure set that has one only; else empty."""
    regions = ds.get("StructureSetROISequence") or []
    uids = {str(region.get("ReferencedFrameOfReferenceUID") or "") for region in regions} - {""}
    return uids.pop() if len(uids) == 1 else ""


def describe_regions(ds: Dataset, values: Mapping[str, int] | None, codes: Mapping[str, Sequence[str]]) -> Described:
    """Which region is which label.

    A plan has regions that no task knows (the body, a couch): unlike in a SEG they are passed over.

    Raises:
        SegmentationError: none is a label of the task.
    """
    kinds = {
        int(item.ReferencedROINumber): item.get("RTROIIdentificationCodeSequence") or []
        for item in ds.get("RTROIObservationsSequence") or []
    }
    regions = {}
    for item in ds.get("StructureSetROISequence") or []:
        number, name = int(item.ROINumber), str(item.get("ROIName") or "").strip()
        label = None if values is None else find_label(name, kinds.get(number, []), values, codes)
        value = check_value(number) if values is None else None
        regions[number] = Drawn(label or name, value if label is None or values is None else values[label])
    described = Described(regions, tuple(values or ()))
    if not described.names:
        expected = ", ".join(map(repr, described.expected)) or "any region"
        raise SegmentationError(f"expected {expected}, given {described.came}; rename the region")
    return described


def draw_regions(ds: Dataset, described: Described, series: Series) -> np.ndarray:
    """Fill the contours of the regions that are labels, on the series' grid.

    Returns:
        (X, Y, Z) uint8 label values.

    Raises:
        SegmentationError: a contour lies between the slices, all lie outside the image, or labels overlap.
    """
    shape = series.frames_shape
    mask = np.zeros(shape, np.uint8, order="F")
    drawn = False
    to_index = np.linalg.inv(LPS_TO_RAS @ series.frames_affine)
    for item in ds.get("ROIContourSequence") or []:
        number = int(item.ReferencedROINumber)
        region = described.by_number.get(number)
        if region is None or region.value is None:
            continue
        slices: dict[int, list[np.ndarray]] = {}
        for contour in item.get("ContourSequence") or []:
            if contour.get("ContourGeometricType") in _MARKS:
                continue
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            points = points @ to_index[:3, :3].T + to_index[:3, 3]  # voxel indices
            slices.setdefault(_find_slice(points, number, shape[2]), []).append(points[:, :2])
        for z, contours in slices.items():
            if 0 <= z < shape[2]:
                fill(mask[..., z], fill_contours(contours, shape[:2]), number, region.value)
        drawn = drawn or bool(slices)
    if drawn and not mask.any():
        raise SegmentationError("expected contours within the image, but all of them lie outside")
    return series.from_frames(mask)


def fill_contours(contours: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose center is within closed contours, by the even-odd rule.

    Args:
        contours: each (points, 2), x and y in pixels; pixel centers are whole numbers.
        shape: (X, Y).

    Returns:
        (X, Y) bool.
    """
    crossed = np.zeros((shape[0] + 1, shape[1]), np.int64)
    for contour in contours:
        for (x, y), (other_x, other_y) in zip(contour, np.roll(contour, -1, axis=0), strict=True):
            low, high = np.ceil(np.clip(sorted((y, other_y)), 0, shape[1])).astype(int)
            rows = np.arange(low, high)
            if rows.size:
                places = x + (rows - y) * (other_x - x) / (other_y - y)
                np.add.at(crossed, (np.ceil(np.clip(places, 0, shape[0])).astype(int), rows), 1)
    return np.cumsum(crossed, axis=0)[:-1] % 2 == 1


def _find_slice(points: np.ndarray, number: int, count: int) -> int:
    if not len(points) or not np.isfinite(points).all():
        raise SegmentationError(f"expected points of numbers in region {number}, given others; export it again")
    z = float(np.clip(np.rint(np.median(points[:, 2])), -1, count))
    if np.abs(points[:, 2] - z).max() > OFF_PLANE and -1 < z < count:
        raise SegmentationError(
            f"expected contours on the series' slices, but one of region {number} lies "
            f"{np.abs(points[:, 2] - z).max():.2f} slices beside; export it for this series"
        )
    return int(z)
