"""DICOM SEG out of a mask: binary, on the source's own slices, saying what made it and that it is not for clinical use.

Source: PS3.3 A.51 and C.8.20. Segments are numbered from 1 without a hole, as the
standard asks; every label of the task is described, drawn or not, so that
label values 1 .. N are the segment numbers. Where a task has other values, a segment's
description says which. Reading is in `segmentation_reading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from highdicom import AlgorithmIdentificationSequence, CoordinateSystemNames, PlanePositionSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

import iopfl
from iopfl.base.errors import SeriesError
from iopfl.core.colors import label_colors
from iopfl.core.task import Task
from iopfl.dicomio.frames import find_group, find_plane
from iopfl.dicomio.geometry import LPS_TO_RAS, Plane
from iopfl.dicomio.labels import Label, SegmentationError, find_time
from iopfl.dicomio.segmentation_reading import VALUE_PREFIX, read_segmentation, referenced_series
from iopfl.dicomio.series import Series

__all__ = [
    "Label",
    "Origin",
    "Segment",
    "SegmentationError",
    "build_segmentation",
    "find_time",
    "read_segmentation",
    "referenced_series",
    "segments_of",
]

NOT_FOR_CLINICAL_USE = "not for clinical use"
SERIES_NUMBER = 9000
"""Of every SEG series: behind the scanner's own."""

_CATEGORY = codes.cid7150.AnatomicalStructure
_TISSUE = Code("85756007", "SCT", "Tissue")
_LONGEST = 64  # characters of DICOM's LO and PN
_BLOCK = 8  # columns (x) of a mask that are reordered together
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
class Segment:
    """A label of a task as a SEG describes it.

    Attributes:
        value: in the mask, 1 to 255.
        name: Segment Label.
        color: recommended display color, `#RRGGBB`.
        code: what it is (Segmented Property Type); None = tissue.
        category: Segmented Property Category.
    """

    value: int
    name: str
    color: str
    code: Code | None = None
    category: Code = _CATEGORY


@dataclass(frozen=True)
class Origin:
    """Who or what made a mask.

    Attributes:
        algorithm: its name; empty = drawn by a person.
        version: of the algorithm: the bank's version and hash.
        annotator: content creator, where a person drew or corrected it; empty = nobody.
        description: of the content, e.g. the task; free of patient identifiers.
    """

    algorithm: str = ""
    version: str = ""
    annotator: str = ""
    description: str = ""


def segments_of(task: Task) -> list[Segment]:
    """A task's labels as segments, in order of their values.

    >>> from iopfl.core.task import read_task
    >>> [(segment.value, segment.name) for segment in segments_of(read_task("hippocampus"))]
    [(1, 'anterior'), (2, 'posterior')]
    """
    colors = label_colors(task)
    return [
        Segment(value, name, colors[name], Code(*task.codes[name]) if name in task.codes else None)
        for name, value in sorted(task.labels.items(), key=lambda item: item[1])
    ]


def build_segmentation(mask: np.ndarray, series: Series, segments: Sequence[Segment], origin: Origin) -> Dataset:
    """Build a binary SEG of a mask.

    Slices without any label are left out, as usual; of a wholly empty mask one stays, since a SEG has at least
    one frame.

    Args:
        mask: (X, Y, Z) label values on the series' grid.
        series: what was segmented; patient, study and place are copied from it.
        segments: all labels that the mask may hold, in order of their values.
        origin: who or what made the mask.

    Returns:
        An instance of Segmentation Storage in a series of its own, uncompressed Explicit VR Little Endian.

    Raises:
        SeriesError: the mask is not on the series' grid, or holds a value that no segment has.
    """
    frames = _number_frames(mask, series, segments)
    if series.frame_numbers:
        frames = frames[np.argsort(series.frame_numbers)]  # the source's order
    sources = _outline_sources(series)
    positions = None
    if series.has_geometry and not frames.any():
        first = find_plane(sources[0]).position
        frames, positions = frames[:1], [PlanePositionSequence(CoordinateSystemNames.PATIENT, first)]
    ds = Segmentation(
        source_images=sources,
        pixel_array=frames,
        plane_positions=positions,
        omit_empty_frames=bool(frames.any()),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(number, item, origin) for number, item in enumerate(segments, start=1)],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="iopfl",
        manufacturer_model_name="iopfl",
        # highdicom's `tuple[str]` is of any length.
        software_versions=(f"iopfl {iopfl.__version__}", f"highdicom {version('highdicom')}"),  # type: ignore[arg-type]
        device_serial_number="0",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="SEGMENTATION",
        content_description=origin.description[:_LONGEST] or None,
        specific_character_set="ISO_IR 192",
    )
    _copy_patient_and_study(series.datasets[0], ds)
    if not series.has_geometry:
        ds.PatientOrientation = series.datasets[0].get("PatientOrientation") or ""
        ds.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence", None)
    ds.SeriesDescription = _series_description(origin)
    ds.SeriesDate, ds.SeriesTime = ds.ContentDate, ds.ContentTime
    ds.ContentCreatorName = origin.annotator.replace("\\", "/").replace("=", "-")[:_LONGEST]
    for number, (item, segment) in enumerate(zip(ds.SegmentSequence, segments, strict=True), start=1):
        if number != segment.value:
            item.SegmentDescription = f"{VALUE_PREFIX}{segment.value}"
    return ds


def _number_frames(mask: np.ndarray, series: Series, segments: Sequence[Segment]) -> np.ndarray:
    """The mask with segment numbers for label values, as frames in slice order, (Z, Y, X)."""
    if mask.shape != series.shape:
        raise SeriesError(f"expected a mask on the series' grid {series.shape}, came {mask.shape}")
    numbers, present = np.zeros(256, np.uint8), np.zeros(256, bool)
    numbers[[segment.value for segment in segments]] = np.arange(1, len(segments) + 1)
    frames = np.empty(mask.shape[::-1], np.uint8)
    for start in range(0, len(mask), _BLOCK):  # so that a block fits the cache: many times faster
        block = mask[start : start + _BLOCK].astype(np.uint8)
        if mask.dtype != np.uint8 and not np.array_equal(block, mask[start : start + _BLOCK]):
            raise SeriesError("expected label values from 0 to 255 in the mask, came others")
        present |= np.bincount(block.ravel(), minlength=256) > 0
        frames[..., start : start + _BLOCK] = numbers[block].transpose(2, 1, 0)
    unknown = set(np.flatnonzero(present).tolist()) - {0, *(segment.value for segment in segments)}
    if unknown:
        named = {segment.value: segment.name for segment in segments}
        raise SeriesError(f"expected the label values {named}, but the mask holds {sorted(unknown)[:8]}")
    return frames


def _describe(number: int, segment: Segment, origin: Origin) -> SegmentDescription:
    algorithm = None
    kind = SegmentAlgorithmTypeValues.MANUAL
    if origin.algorithm:
        kind = SegmentAlgorithmTypeValues.SEMIAUTOMATIC if origin.annotator else SegmentAlgorithmTypeValues.AUTOMATIC
        algorithm = AlgorithmIdentificationSequence(
            name=origin.algorithm[:_LONGEST],
            family=codes.cid7162.ArtificialIntelligence,
            version=origin.version[:_LONGEST] or iopfl.__version__,
            source="iopfl",
        )
    return SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:_LONGEST],
        segmented_property_category=segment.category,
        segmented_property_type=segment.code or _TISSUE,
        algorithm_type=kind,
        algorithm_identification=algorithm,
        display_color=CIELabColor.from_string(segment.color),
    )


def _series_description(origin: Origin) -> str:
    """What it is, cut so that the warning always fits."""
    what = origin.description or origin.algorithm or "segmentation"
    return f"{what[: _LONGEST - len(NOT_FOR_CLINICAL_USE) - 2]}, {NOT_FOR_CLINICAL_USE}"


def _outline_sources(series: Series) -> list[Dataset]:
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


def _copy_patient_and_study(source: Dataset, ds: Segmentation) -> None:
    """Copy the source's patient and study modules as they are, whatever its character set."""
    source = deepcopy(source)
    source.decode()
    ds.copy_patient_and_study_information(source)
