"""Structure sets: contours filled on the series' slices, by region, or refused with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from skimage.measure import points_in_poly

from dicomio import phantoms
from iopfl.dicomio.rtstruct import fill_contours
from iopfl.dicomio.segmentation import SegmentationError, read_segmentation, referenced_series
from iopfl.dicomio.series import Series, read_series

LABELS = {"prostate": 1, "bladder": 2}
SQUARE = np.array([[2.5, 3.5], [9.5, 3.5], [9.5, 8.5], [2.5, 8.5]])
"""In pixels: columns 3 to 9 and rows 4 to 8 are inside."""


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Series:
    slices = phantoms.build_slices(phantoms.volume((14, 12, 6)), directions=phantoms.OBLIQUE)
    return read_series(phantoms.write(slices, tmp_path_factory.mktemp("series")))


def build_structure_set(series: Series, regions: dict[str, Sequence[tuple[float, np.ndarray]]]) -> Dataset:
    """Regions by name, each a list of (slice, points in pixels)."""
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = uid.RTStructureSetStorage, "RTSTRUCT"
    ds.PatientName, ds.PatientID = "Müller^Jörg", "P-1"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.StructureSetDate, ds.StructureSetTime, ds.OperatorsName = "20240102", "030405", "Reader2"
    item, study, frame = Dataset(), Dataset(), Dataset()
    item.SeriesInstanceUID = series.series_instance_uid
    study.RTReferencedSeriesSequence = [item]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = series.frame_of_reference_uid, [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.affine
    for number, (name, contours) in enumerate(regions.items(), start=1):
        region, drawn = Dataset(), Dataset()
        region.ROINumber, region.ROIName = number, name
        region.ReferencedFrameOfReferenceUID = series.frame_of_reference_uid
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for z, points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            places = np.column_stack([points, np.full(len(points), z), np.ones(len(points))]) @ to_lps.T
            contour.ContourData = [f"{value:.5f}" for value in places[:, :3].ravel()]
            drawn.ContourSequence.append(contour)
        ds.StructureSetROISequence.append(region)
        ds.ROIContourSequence.append(drawn)
    return ds


def test_contours_are_filled_on_their_slices(series):
    hole = SQUARE.mean(axis=0) + (SQUARE - SQUARE.mean(axis=0)) * 0.5
    regions = {
        "Prostate ": [(2, SQUARE), (3, SQUARE[::-1]), (4, SQUARE), (4, hole)],
        "body": [(z, np.array([[0, 0], [13, 0], [13, 11], [0, 11]])) for z in range(6)],
        "BLADDER": [(0, SQUARE)],
    }
    label = read_segmentation(build_structure_set(series, regions), series, LABELS)
    expected = np.zeros(series.shape, np.uint8)
    expected[3:10, 4:9, 2:5] = 1
    expected[5:8, 5:8, 4] = 0
    expected[3:10, 4:9, 0] = 2
    assert np.array_equal(label.mask, expected)
    assert label.names == {1: "prostate", 2: "bladder"}
    assert label.annotator == "Reader2" and label.when.year == 2024


def test_without_a_task_regions_have_their_numbers(series):
    label = read_segmentation(build_structure_set(series, {"a": [(1, SQUARE)], "b": [(2, SQUARE)]}), series)
    assert label.names == {1: "a", 2: "b"}
    assert np.unique(label.mask[..., 2]).tolist() == [0, 2]


def test_the_series_is_named(series):
    ds = build_structure_set(series, {"prostate": [(1, SQUARE)]})
    assert referenced_series(ds) == series.series_instance_uid


@pytest.mark.parametrize("seed", range(6))
def test_the_inside_is_what_scikit_image_says(seed):
    random = np.random.default_rng(seed)
    polygon = random.uniform(-3, 23, size=(7, 2))  # crosses itself and leaves the image
    x, y = np.mgrid[:20, :16]
    inside = points_in_poly(np.column_stack([x.ravel(), y.ravel()]), polygon).reshape(20, 16)
    assert np.array_equal(fill_contours([polygon], (20, 16)), inside)


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        ({"liver": [(1, SQUARE)]}, "'prostate', 'bladder', given 'liver'"),
        ({"prostate": [(1.5, SQUARE)]}, "0.50 slices beside"),
        ({"prostate": [(1, SQUARE)], "bladder": [(1, SQUARE)]}, "segment 2 overlaps label value 1"),
        ({}, "given none"),
        ({"prostate": [(40, SQUARE)]}, "all of them lie outside"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(series, regions, reason):
    with pytest.raises(SegmentationError, match=reason):
        read_segmentation(build_structure_set(series, regions), series, LABELS)


def test_one_of_another_series_is_refused(series):
    ds = build_structure_set(series, {"prostate": [(1, SQUARE)]})
    study = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    with pytest.raises(SegmentationError, match=r"given one of 1\.2\.3"):
        read_segmentation(ds, series, LABELS)
