"""Pictures with the mask burned in: right in place and color, with their words, and without fault for dciodvfy."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageColor
from pydicom import dcmread

from dicomio import phantoms
from iopfl.core.task import read_task
from iopfl.dicomio.captures import build_captures
from iopfl.dicomio.segmentation import Origin, segments_of
from iopfl.dicomio.series import read_series

HIPPOCAMPUS = read_task("hippocampus")
ORIGIN = Origin("iopfl hippocampus", "bank 3-1a2b3c4d, routed", "", "hippocampus")


@pytest.mark.parametrize("kind", ["slices", "enhanced", "photograph"])
def test_each_slice_with_a_label_is_a_picture_with_outlines_in_place(tmp_path, kind):
    if kind == "photograph":
        datasets = [phantoms.build_photograph(np.full((14, 12, 3), 100, np.uint8))]
    else:
        datasets = phantoms.build_slices(phantoms.volume(), directions=phantoms.OBLIQUE)
        datasets = [phantoms.build_enhanced(datasets)] if kind == "enhanced" else datasets
    series = read_series(phantoms.write(datasets, tmp_path / "series"))
    mask = np.zeros(series.shape, np.uint8)
    mask[3:9, 5:8, -1] = 2
    (capture,) = build_captures(mask, series, segments_of(HIPPOCAMPUS), ORIGIN, quality=0.834)
    capture.save_as(tmp_path / "capture.dcm", enforce_file_format=True)
    assert phantoms.validate(tmp_path / "capture.dcm", "SCImage") == []
    ds = dcmread(tmp_path / "capture.dcm")
    assert (ds.PatientName, ds.BurnedInAnnotation) == ("Müller^Jörg", "YES")
    assert "quality score (agreement of the experts, 0 to 1): 0.83" in ds.DerivationDescription
    assert "NOT FOR CLINICAL USE" in ds.DerivationDescription
    scale = ds.Columns // series.shape[0]
    assert ds.Columns >= 512
    if kind != "photograph":
        assert [float(value) * scale for value in ds.PixelSpacing] == pytest.approx([0.9, 0.7])
    color = np.array(ImageColor.getrgb(segments_of(HIPPOCAMPUS)[1].color))
    pixels = ds.pixel_array[: series.shape[1] * scale]
    ys, xs = np.nonzero((pixels == color).all(axis=-1))
    assert (xs.min() / scale, (xs.max() + 1) / scale) == (pytest.approx(3, abs=1), pytest.approx(9, abs=1))
    assert (ys.min() / scale, (ys.max() + 1) / scale) == (pytest.approx(5, abs=1), pytest.approx(8, abs=1))


def test_of_an_empty_mask_one_picture_says_that_nothing_was_found(tmp_path):
    series = read_series(phantoms.write(phantoms.build_slices(phantoms.volume()), tmp_path / "series"))
    (capture,) = build_captures(np.zeros(series.shape, np.uint8), series, segments_of(HIPPOCAMPUS), ORIGIN)
    assert "nothing found of anterior, posterior" in capture.DerivationDescription
