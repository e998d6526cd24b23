"""DICOM SEG out of a mask: binary or a label map, on its own slices, with what made it, and not for clinical use.

Source: PS3.3 A.51 and C.8.20. Segments are numbered from 1 without a hole, as the
standard asks; every label of the task is described, drawn or not, so that
label values 1 .. N are the segment numbers. Where a task has other values, a segment's
description says which. Reading is in `segmentation_reading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import AlgorithmIdentificationSequence, CoordinateSystemNames, PlanePositionSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, generate_uid

import iopfl
from iopfl.base.errors import SeriesError
from iopfl.core.colors import label_colors
from iopfl.core.task import Task
from iopfl.dicomio.derived import LONGEST, Origin, equipment, finish, outline_sources
from iopfl.dicomio.frames import find_plane
from iopfl.dicomio.labels import Label, SegmentationError, find_time
from iopfl.dicomio.segmentation_reading import VALUE_PREFIX, read_segmentation
from iopfl.dicomio.series import Series
from iopfl.dicomio.sources import referenced_series

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

SERIES_NUMBER = 9000
"""Of every SEG series: behind the scanner's own."""

_CATEGORY = codes.cid7150.AnatomicalStructure
TISSUE = Code("85756007", "SCT", "Tissue")
"""What a label is of which the task says no code."""


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


def build_segmentation(
    mask: np.ndarray, series: Series, segments: Sequence[Segment], origin: Origin, *, as_label_map: bool = False
) -> Dataset:
    """Build a SEG of a mask.

    Slices without any label are left out, as usual; of a wholly empty mask one stays, since a SEG has at least
    one frame.

    Args:
        mask: (X, Y, Z) label values on the series' grid.
        series: what was segmented; patient, study and place are copied from it.
        segments: all labels that the mask may hold, in order of their values.
        origin: who or what made the mask.
        as_label_map: one frame for a slice with all labels (DICOM Supplement 243) instead of one for each label; not
            every viewer reads these.

    Returns:
        An instance of Segmentation Storage in a series of its own, uncompressed Explicit VR Little Endian; or of Label
        Map Segmentation Storage, JPEG-LS Lossless, much smaller where there are many labels.

    Raises:
        SeriesError: the mask is not on the series' grid, or holds a value that no segment has.
    """
    frames = _number_frames(mask, series, segments)
    if series.frame_numbers:
        frames = frames[np.argsort(series.frame_numbers)]  # the source's order
    sources = outline_sources(series)
    positions = None
    if series.has_geometry and not frames.any():
        first = find_plane(sources[0]).position
        frames, positions = frames[:1], [PlanePositionSequence(CoordinateSystemNames.PATIENT, first)]
    ds = Segmentation(
        source_images=sources,
        pixel_array=frames,
        plane_positions=positions,
        omit_empty_frames=bool(frames.any()),
        segmentation_type=SegmentationTypeValues.LABELMAP if as_label_map else SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(number, item, origin) for number, item in enumerate(segments, start=1)],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        **equipment(),
        transfer_syntax_uid=JPEGLSLossless if as_label_map else ExplicitVRLittleEndian,
        content_label="SEGMENTATION",
        content_description=origin.description[:LONGEST] or None,
        specific_character_set="ISO_IR 192",
    )
    finish(ds, series, origin)
    if not series.has_geometry:
        ds.PatientOrientation = series.datasets[0].get("PatientOrientation") or ""
        ds.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence", None)
    ds.ContentCreatorName = origin.person_name
    for item in ds.SegmentSequence:
        number = int(item.SegmentNumber)
        if number and number != segments[number - 1].value:  # a label map describes the background too, as 0
            item.SegmentDescription = f"{VALUE_PREFIX}{segments[number - 1].value}"
    return ds


def _number_frames(mask: np.ndarray, series: Series, segments: Sequence[Segment]) -> np.ndarray:
    """The mask with segment numbers for label values, as frames in slice order, (Z, Y, X)."""
    if mask.shape != series.shape:
        raise SeriesError(f"expected a mask on the series' grid {series.shape}, given {mask.shape}")
    mask = series.to_frames(mask)
    numbers, present = np.zeros(256, np.uint8), np.zeros(256, bool)
    numbers[[segment.value for segment in segments]] = np.arange(1, len(segments) + 1)
    frames = np.empty(mask.shape[::-1], np.uint8)
    for plane, frame in zip(np.moveaxis(mask, 2, 0), frames, strict=True):
        values = plane.T.astype(np.uint8)
        if mask.dtype != np.uint8 and not np.array_equal(values, plane.T):
            raise SeriesError("expected label values from 0 to 255 in the mask, given others")
        present |= np.bincount(values.ravel(), minlength=256) > 0
        numbers.take(values, out=frame)
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
            name=origin.algorithm[:LONGEST],
            family=codes.cid7162.ArtificialIntelligence,
            version=origin.version[:LONGEST] or iopfl.__version__,
            source="iopfl",
        )
    return SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:LONGEST],
        segmented_property_category=segment.category,
        segmented_property_type=segment.code or TISSUE,
        algorithm_type=kind,
        algorithm_identification=algorithm,
        display_color=CIELabColor.from_string(segment.color),
    )
