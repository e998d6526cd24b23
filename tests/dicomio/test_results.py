"""All that is sent of a mask: together, once each, and only what makes sense."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import uid

from dicomio import phantoms
from iopfl.base.errors import ConfigError
from iopfl.core.task import read_task
from iopfl.dicomio.result_kinds import KINDS, check_kinds
from iopfl.dicomio.results import build_results
from iopfl.dicomio.segmentation import Origin, segments_of
from iopfl.dicomio.series import read_series

HIPPOCAMPUS = read_task("hippocampus")
LABEL_MAP = uid.UID("1.2.840.10008.5.1.4.1.1.66.7")
"""Label Map Segmentation Storage, which pydicom does not name yet."""
ORIGIN = Origin("iopfl hippocampus", "bank 3-1a2b3c4d, routed", "", "hippocampus")


@pytest.mark.parametrize("segmentation", ["seg", "label_map"])
def test_everything_of_a_mask_is_of_its_patient_and_says_what_it_is_not_for(tmp_path, segmentation):
    series = read_series(phantoms.write(phantoms.build_slices(phantoms.volume()), tmp_path / "series"))
    kinds = check_kinds(["structures", "captures", "report", segmentation, "report", "disagreement"])
    mask, where = phantoms.mask_in(series.shape), np.full(series.shape, 50, np.uint8)
    results = build_results(kinds, mask, series, segments_of(HIPPOCAMPUS), ORIGIN, disagreement=where)
    classes = [LABEL_MAP if segmentation == "label_map" else uid.SegmentationStorage]
    classes += [
        uid.Comprehensive3DSRStorage,
        *[uid.SecondaryCaptureImageStorage] * 4,
        uid.RTStructureSetStorage,
        uid.SegmentationStorage,
    ]
    assert [ds.SOPClassUID for ds in results] == classes
    assert {str(ds.PatientName) for ds in results} == {"Müller^Jörg"}
    assert {ds.StudyInstanceUID for ds in results} == {series.study_instance_uid}
    assert {ds.SeriesDescription.removeprefix("check here, ") for ds in results} == {
        "hippocampus, not for clinical use"
    }
    assert len({ds.SOPInstanceUID for ds in results}) == len(results)
    assert len({ds.SeriesInstanceUID for ds in results}) == 5


def test_a_photograph_gets_no_structure_set(tmp_path):
    picture = phantoms.build_photograph(phantoms.volume((14, 12, 3), low=0, high=255).astype(np.uint8))
    series = read_series(phantoms.write([picture], tmp_path / "picture"))
    kinds = check_kinds(["seg", "report", "captures", "structures"])
    mask = np.ones(series.shape, np.uint8)
    results = build_results(kinds, mask, series, segments_of(HIPPOCAMPUS), ORIGIN, quality=0.5)
    assert [ds.Modality for ds in results] == ["SEG", "SR", "OT"]


@pytest.mark.parametrize(
    ("kinds", "match"),
    [
        ([], "given none"),
        (["seg", "pdf"], "given pdf"),
        (["report"], "one of seg or label_map"),
        (["seg", "label_map"], "one of seg or label_map"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(kinds, match):
    with pytest.raises(ConfigError, match=match):
        check_kinds(kinds)
    assert check_kinds(KINDS[:1]) == ("seg",)
