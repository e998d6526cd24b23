"""The structured report of a mask: found again by highdicom's reader, and without fault for dciodvfy."""

from __future__ import annotations

import numpy as np
import pytest
from highdicom.sr import srread

from dicomio import phantoms
from iopfl.core.measuring import measure
from iopfl.core.task import read_task
from iopfl.dicomio.report import build_report
from iopfl.dicomio.segmentation import Origin, build_segmentation, segments_of
from iopfl.dicomio.series import read_series

HIPPOCAMPUS = read_task("hippocampus")
ORIGIN = Origin("iopfl hippocampus", "bank 3-1a2b3c4d, routed", "", "hippocampus")


@pytest.mark.parametrize("kind", ["slices", "enhanced", "photograph"])
@pytest.mark.parametrize("origin", [ORIGIN, Origin(annotator="Ad^A")], ids=["model", "person"])
def test_the_report_gives_each_labels_size_and_its_segment(tmp_path, kind, origin):
    if kind == "photograph":
        datasets = [phantoms.build_photograph(phantoms.volume((14, 12, 3), low=0, high=255).astype(np.uint8))]
    else:
        datasets = phantoms.build_slices(phantoms.volume(), directions=phantoms.OBLIQUE)
        datasets = [phantoms.build_enhanced(datasets)] if kind == "enhanced" else datasets
    series = read_series(phantoms.write(datasets, tmp_path / "series"))
    mask = np.zeros(series.shape, np.uint8)
    mask[3:9, 5:8] = 1  # nothing of the second label
    segments = segments_of(HIPPOCAMPUS)
    seg = build_segmentation(mask, series, segments, origin)
    sizes = measure(mask, HIPPOCAMPUS.labels, series.affine if series.has_geometry else None)
    build_report(seg, series, segments, sizes, origin, quality=0.834).save_as(tmp_path / "report.dcm")

    assert phantoms.validate(tmp_path / "report.dcm", "SR") == []
    report = srread(tmp_path / "report.dcm")
    assert report.PatientName == "Müller^Jörg"
    assert report.SeriesDescription.endswith("not for clinical use")
    (drawn,) = report.content.get_volumetric_roi_measurement_groups()
    assert drawn.tracking_identifier == "anterior"
    assert drawn.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
    values = {item.name.meaning: (item.value, item.unit.value) for item in drawn.get_measurements()}
    if kind == "photograph":
        assert values == {"Area": (18, "{pixels}"), "Long axis": (pytest.approx(40**0.5, abs=1e-3), "{pixels}")}
    else:
        assert values["Volume"] == (pytest.approx(6 * 3 * 6 * 0.7 * 0.9 * 3.0 / 1000, rel=1e-3), "ml")
        assert values["Long axis"] == (pytest.approx(4.5, abs=0.3), "mm")
    (missing,) = report.content.get_image_measurement_groups()
    assert missing.tracking_identifier == "posterior"
    assert {item.value for item in missing.get_measurements()} == {0}
    text = report.to_json()
    for said in ("quality score (agreement of the experts, 0 to 1): 0.83", "bank 3-1a2b3c4d, routed"):
        assert (said in text) == bool(origin.algorithm)
    assert ("Ad^A" in text) == bool(origin.annotator)
