"""A mask as a structure set: the same voxels again for our reader and for another, and without fault for dciodvfy."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import dcmread
from scipy import ndimage
from skimage.draw import polygon2mask

from dicomio import phantoms
from iopfl.base.errors import SeriesError
from iopfl.core.task import read_task
from iopfl.dicomio.rtstruct import fill_contours
from iopfl.dicomio.segmentation import Origin, read_segmentation, segments_of
from iopfl.dicomio.series import read_series
from iopfl.dicomio.structures import build_structure_set, trace

HIPPOCAMPUS = read_task("hippocampus")
ORIGIN = Origin("iopfl hippocampus", "bank 3-1a2b3c4d, routed", "", "hippocampus")


@pytest.mark.parametrize("seed", range(20))
def test_any_mask_is_filled_again_exactly_holes_islands_and_rims_of_the_image_too(seed):
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 24, size=2))
    noise = generator.random(shape) if seed % 2 else ndimage.gaussian_filter(generator.random(shape), 1.5)
    plane = noise > np.median(noise)
    contours = trace(plane)
    assert np.array_equal(fill_contours(contours, plane.shape), plane)
    other = np.zeros(plane.shape, bool)
    for contour in contours:
        other |= polygon2mask(plane.shape, contour)
    assert np.array_equal(other, plane)


@pytest.mark.parametrize("kind", ["slices", "enhanced"])
def test_a_structure_set_is_read_back_exactly_and_without_fault(tmp_path, kind):
    slices = phantoms.build_slices(phantoms.volume(), directions=phantoms.OBLIQUE)
    shuffled = [slices[index] for index in (3, 0, 5, 1, 4, 2)]
    datasets = [phantoms.build_enhanced(shuffled)] if kind == "enhanced" else slices
    series = read_series(phantoms.write(datasets, tmp_path / "series"))
    mask = phantoms.mask_in(series.shape)
    mask[3, 5, 2] = 0  # a hole
    build_structure_set(mask, series, segments_of(HIPPOCAMPUS), ORIGIN).save_as(
        tmp_path / "structures.dcm", enforce_file_format=True
    )
    assert phantoms.validate(tmp_path / "structures.dcm", "RTStructureSet") == []
    ds = dcmread(tmp_path / "structures.dcm")
    label = read_segmentation(ds, series, HIPPOCAMPUS.labels)
    assert np.array_equal(label.mask, mask)
    assert label.names == {1: "anterior", 2: "posterior"}
    assert ds.PatientName == "Müller^Jörg"
    assert ds.SeriesDescription == "hippocampus, not for clinical use"


def test_a_label_that_is_not_drawn_is_a_region_without_a_contour(tmp_path):
    series = read_series(phantoms.write(phantoms.build_slices(phantoms.volume()), tmp_path / "series"))
    mask = np.zeros(series.shape, np.uint8)
    mask[4:6, 5:8, 2] = 1
    ds = build_structure_set(mask, series, segments_of(HIPPOCAMPUS), ORIGIN)
    assert [region.ROIName for region in ds.StructureSetROISequence] == ["anterior", "posterior"]
    assert ["ContourSequence" in region for region in ds.ROIContourSequence] == [True, False]


def test_a_photograph_and_a_mask_on_another_grid_are_refused(tmp_path):
    picture = phantoms.build_photograph(phantoms.volume((14, 12, 3), low=0, high=255).astype(np.uint8))
    series = read_series(phantoms.write([picture], tmp_path / "picture"))
    with pytest.raises(SeriesError, match="photograph"):
        build_structure_set(np.zeros(series.shape, np.uint8), series, segments_of(HIPPOCAMPUS), ORIGIN)
    series = read_series(phantoms.write(phantoms.build_slices(phantoms.volume()), tmp_path / "series"))
    with pytest.raises(SeriesError, match="grid"):
        build_structure_set(np.zeros((2, 2, 2), np.uint8), series, segments_of(HIPPOCAMPUS), ORIGIN)
