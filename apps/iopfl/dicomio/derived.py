"""What every object that is made of a mask shares: who made it, its sources' place, patient and study.

Used by `segmentation`, `report`, `captures` and `structures`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from highdicom import SOPClass
from pydicom import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import format_number_as_ds

import iopfl
from iopfl.dicomio.frames import find_group, find_plane
from iopfl.dicomio.geometry import LPS_TO_RAS, Plane
from iopfl.dicomio.series import Series

NOT_FOR_CLINICAL_USE = "not for clinical use"
LONGEST = 64
"""Characters of DICOM's LO and PN."""

_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
# What highdicom asks for; the source's own modules replace it.
_PATIENT_AND_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)


@dataclass(frozen=True)
class Origin:
    """Who or what made a mask.

    Attributes:
        algorithm: its name; empty = drawn by a person.
        version: the version of the algorithm: the bank's version and hash.
        annotator: content creator, where a person drew or corrected it; empty = nobody.
        description: the description of the content, e.g. the task; free of patient identifiers.
    """

    algorithm: str = ""
    version: str = ""
    annotator: str = ""
    description: str = ""

    @property
    def person_name(self) -> str:
        """The annotator as a value of VR PN (PS3.5, 6.2), in which a backslash and an equals sign separate values."""
        return self.annotator.replace("\\", "/").replace("=", "-")[:LONGEST]


def equipment() -> dict[str, Any]:
    """What made an object, as highdicom's constructors take it."""
    return {
        "manufacturer": "iopfl",
        "manufacturer_model_name": "iopfl",
        "software_versions": (f"iopfl {iopfl.__version__}", f"highdicom {version('highdicom')}"),
        "device_serial_number": "0",
    }


def finish(ds: SOPClass, series: Series, origin: Origin) -> None:
    """Say whose an object is, as its source does, and what it is; the warning always fits."""
    source = deepcopy(series.datasets[0])
    source.decode()  # whatever the source's character set
    ds.copy_patient_and_study_information(source)
    what = origin.description or origin.algorithm or "segmentation"
    ds.SeriesDescription = f"{what[: LONGEST - len(NOT_FOR_CLINICAL_USE) - 2]}, {NOT_FOR_CLINICAL_USE}"
    ds.SeriesDate, ds.SeriesTime = ds.ContentDate, ds.ContentTime


def outline_sources(series: Series) -> list[Dataset]:
    """The sources as highdicom needs them: where the slices lie, and no patient, whose name it would log."""
    outlines = [_outline(ds, series) for ds in series.datasets]
    if not series.has_geometry:
        return outlines
    planes = [find_plane(series.datasets[0], number - 1) for number in sorted(series.frame_numbers)]
    planes = planes or [find_plane(ds) for ds in series.datasets]
    direction, measures = _shared_place(series, planes[0])
    for outline, plane in zip(outlines, planes, strict=not series.frame_numbers):
        outline.update(direction)
        outline.update(measures)
        outline.ImagePositionPatient = list(plane.position)
    if series.frame_numbers:
        shared, frames = Dataset(), [Dataset() for _ in planes]
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [direction], [measures]
        for frame, plane in zip(frames, planes, strict=True):
            frame.PlanePositionSequence = [Dataset()]
            frame.PlanePositionSequence[0].ImagePositionPatient = list(plane.position)
        outlines[0].NumberOfFrames = len(planes)
        outlines[0].SharedFunctionalGroupsSequence = [shared]
        outlines[0].PerFrameFunctionalGroupsSequence = frames
    return outlines


def _outline(source: Dataset, series: Series) -> Dataset:
    outline = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "Rows", "Columns", *_LOSSY):
        if keyword in source:
            setattr(outline, keyword, source[keyword].value)
    outline.StudyInstanceUID, outline.SeriesInstanceUID = series.study_instance_uid, series.series_instance_uid
    outline.Modality = series.modality
    for keyword in _PATIENT_AND_STUDY:
        setattr(outline, keyword, None)
    if not series.has_geometry:
        # highdicom takes photographs for multi-frame and asks for what they lack.
        outline.NumberOfFrames = 1
        outline.SharedFunctionalGroupsSequence = [Dataset()]
        outline.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [Dataset()]
    else:
        # A source that says no frame of reference still gets one, the same for all its segmentations.
        same = generate_uid(entropy_srcs=[series.series_instance_uid])
        outline.FrameOfReferenceUID = series.frame_of_reference_uid or same
        outline.PositionReferenceIndicator = source.get("PositionReferenceIndicator")
    return outline


def _shared_place(series: Series, plane: Plane) -> tuple[Dataset, Dataset]:
    """Plane Orientation and Pixel Measures of all slices."""
    direction, measures = Dataset(), Dataset()
    direction.ImageOrientationPatient = [*plane.row, *plane.column]
    measures.PixelSpacing = [plane.spacing[1], plane.spacing[0]]
    distance = abs(float(plane.normal @ (LPS_TO_RAS @ series.affine)[:3, 2]))
    measures.SpacingBetweenSlices = format_number_as_ds(distance)
    said = find_group(series.datasets[0], 0, "PixelMeasuresSequence").get("SliceThickness")
    measures.SliceThickness = said or format_number_as_ds(distance)
    return direction, measures
