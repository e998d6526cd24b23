"""The SEG of where the experts disagree: in its place for other readers, and without fault for dciodvfy."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # as its own documentation writes it
from highdicom.seg import segread

from dicomio import phantoms
from iopfl.base.errors import SeriesError
from iopfl.dicomio.derived import Origin
from iopfl.dicomio.regions import build_regions
from iopfl.dicomio.series import read_series

ORIGIN = Origin("iopfl hippocampus", "bank 3-1a2b3c4d, routed", "Ad^A", "hippocampus")


@pytest.mark.parametrize("kind", ["slices", "enhanced", "photograph", "nothing to check"])
def test_what_is_to_be_checked_lies_in_its_place_and_is_nobodys_label(tmp_path, kind):
    if kind == "photograph":
        datasets = [phantoms.build_photograph(np.full((14, 12, 3), 100, np.uint8))]
    else:
        slices = phantoms.build_slices(phantoms.volume(), directions=phantoms.OBLIQUE)
        datasets = [phantoms.build_enhanced(slices)] if kind == "enhanced" else slices
    series = read_series(phantoms.write(datasets, tmp_path / "series"))
    percent = np.full(series.shape, 25, np.uint8)  # one of four: no reason to check
    if kind != "nothing to check":
        percent[3:9, 5:10, -2:] = 50
    build_regions(percent, series, ORIGIN).save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    assert phantoms.validate(tmp_path / "seg.dcm") == []

    seg = segread(tmp_path / "seg.dcm")
    described = seg.get_segment_description(1)
    assert (described.segment_label, described.algorithm_type.value) == ("check here", "AUTOMATIC")
    assert (seg.ContentCreatorName, seg.SeriesNumber, seg.PatientName) == ("", 9004, "Müller^Jörg")
    assert seg.SeriesDescription == "check here, hippocampus, not for clinical use"
    pixels = seg.pixel_array
    assert int(pixels.sum()) == (percent == 50).sum()
    if kind in ("slices", "enhanced"):
        found = seg.get_volume(combine_segments=True)
        voxel = np.array([4, 6, series.shape[2] - 1])
        for index, value in ((voxel, 1), (voxel - [2, 0, 0], 0)):
            place = find_place(tmp_path / "series", index) if kind == "slices" else to_lps(series.affine, index)
            z, y, x = found.map_reference_to_indices(np.array([place]), round_output=True)[0]
            assert found.array[z, y, x] == value


def find_place(folder, index):
    """Where ITK finds a voxel of a series, LPS in mm."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute().TransformIndexToPhysicalPoint([int(edge) for edge in index])


def to_lps(affine, index):
    return (np.diag([-1, -1, 1, 1]) @ affine @ [*index, 1])[:3]


def test_a_map_of_another_grid_is_refused(tmp_path):
    series = read_series(phantoms.write(phantoms.build_slices(phantoms.volume()), tmp_path / "series"))
    with pytest.raises(SeriesError, match="expected a mask on the series' grid"):
        build_regions(np.zeros((3, 3, 3), np.uint8), series, ORIGIN)
