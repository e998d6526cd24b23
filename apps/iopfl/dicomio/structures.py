"""A radiotherapy structure set (RTSTRUCT) out of a mask: closed contours on its slices. Reading is in `rtstruct`.

Source: PS3.3 A.19 and C.8.8.6. A contour runs halfway between the centers of pixels inside and outside. A hole is cut
by a keyhole of no width, as C.8.8.6.3 describes, which every reader understands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise

import contourpy
import numpy as np
from highdicom import SOPClass
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from pydicom.valuerep import DA, TM, format_number_as_ds

import iopfl
from iopfl.base.errors import SeriesError
from iopfl.dicomio.derived import LONGEST, Origin, equipment, finish, outline_sources
from iopfl.dicomio.geometry import LPS_TO_RAS
from iopfl.dicomio.segmentation import TISSUE, Segment
from iopfl.dicomio.series import Series

SERIES_NUMBER = 9003
LABEL = "IOPFL"
"""Structure Set Label, by which a label server knows what goes with a SEG of the same mask."""

_SHORTEST = 16  # characters of DICOM's SH


def build_structure_set(mask: np.ndarray, series: Series, segments: Sequence[Segment], origin: Origin) -> Dataset:
    """Build a structure set of a mask; a label without a voxel is a region without a contour.

    Args:
        mask: (X, Y, Z) label values on the series' grid.
        series: what was segmented; it has a place in the patient.
        segments: all labels of the mask.
        origin: who or what made the mask.

    Returns:
        An instance of RT Structure Set Storage in a series of its own, uncompressed Explicit VR Little Endian.

    Raises:
        SeriesError: the series is a photograph, which has no millimeters, or the mask is on another grid.
    """
    if not series.has_geometry:
        raise SeriesError("expected a series with a place in the patient; a photograph has none: ask for a SEG")
    if mask.shape != series.shape:
        raise SeriesError(f"expected a mask on the series' grid {series.shape}, given {mask.shape}")
    mask, sources = series.to_frames(mask), outline_sources(series)
    now = datetime.now()
    ds = SOPClass(
        study_instance_uid=series.study_instance_uid,
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        sop_class_uid=RTStructureSetStorage,
        modality="RTSTRUCT",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        manufacturer=equipment()["manufacturer"],
        manufacturer_model_name=equipment()["manufacturer_model_name"],
        software_versions=equipment()["software_versions"],
        specific_character_set="ISO_IR 192",
    )
    ds.ContentDate, ds.ContentTime = DA(now.date()), TM(now.time().replace(microsecond=0))
    finish(ds, series, origin)
    ds.OperatorsName = ""
    ds.StructureSetLabel = LABEL
    ds.StructureSetDescription = ds.SeriesDescription
    ds.StructureSetDate, ds.StructureSetTime = ds.ContentDate, ds.ContentTime
    ds.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
    ds.PositionReferenceIndicator = sources[0].PositionReferenceIndicator
    ds.ReferencedFrameOfReferenceSequence = [_refer(sources)]
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    for number, segment in enumerate(segments, start=1):
        ds.StructureSetROISequence.append(_describe(number, segment, origin, str(ds.FrameOfReferenceUID)))
        ds.ROIContourSequence.append(_draw(number, segment, mask, series, sources))
        ds.RTROIObservationsSequence.append(_observe(number, segment, origin))
    return ds


def outline(plane: np.ndarray) -> list[list[np.ndarray]]:
    """Outlines of a mask (X, Y): of each connected part the outer one, then those of its holes.

    Returns:
        Each outline (points, 2), voxel indices, without the first point again at its end.
    """
    padded = np.pad(plane.astype(np.float32), 1)
    filled = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset).filled(0.5, np.inf)
    return [
        [points[start : end - 1, ::-1] - 1 for start, end in pairwise(offsets)]  # (row, column) of the padded plane
        for points, offsets in zip(*filled, strict=True)
    ]


def trace(plane: np.ndarray) -> list[np.ndarray]:
    """Closed contours of a mask (X, Y), one for each connected part, with keyholes: (points, 2) voxel indices."""
    contours = []
    for contour, *holes in outline(plane):
        for hole in holes:
            distance = np.linalg.norm(contour[:, None] - hole[None], axis=2)
            here, there = np.unravel_index(distance.argmin(), distance.shape)
            around = np.roll(hole, -int(there), axis=0)
            contour = np.concatenate([contour[: here + 1], around, around[:1], contour[here:]])
        contours.append(contour)
    return contours


def _draw(number: int, segment: Segment, mask: np.ndarray, series: Series, sources: Sequence[Dataset]) -> Dataset:
    """ROI Contour of a segment."""
    region = Dataset()
    region.ReferencedROINumber = number
    region.ROIDisplayColor = [int(segment.color[start : start + 2], 16) for start in (1, 3, 5)]
    contours = list(_contours(segment, mask, series, sources))
    if contours:
        region.ContourSequence = contours
    return region


def _contours(segment: Segment, mask: np.ndarray, series: Series, sources: Sequence[Dataset]) -> Iterator[Dataset]:
    to_patient = LPS_TO_RAS @ series.frames_affine
    for z in np.flatnonzero((mask == segment.value).any(axis=(0, 1))):
        for points in trace(mask[..., z] == segment.value):
            voxels = np.column_stack([points, np.full(len(points), z), np.ones(len(points))])
            places = (voxels @ to_patient.T)[:, :3]
            contour = Dataset()
            contour.ContourImageSequence = [_refer_to_slice(series, sources, int(z))]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(places)
            contour.ContourData = [format_number_as_ds(round(float(value), 4)) for value in places.ravel()]
            yield contour


def _refer(sources: Sequence[Dataset]) -> Dataset:
    """Referenced Frame of Reference, with every image of the series."""
    frame, study, series = Dataset(), Dataset(), Dataset()
    frame.FrameOfReferenceUID = sources[0].FrameOfReferenceUID
    # Detached Study Management, retired, is what the standard still asks for here.
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"
    study.ReferencedSOPInstanceUID = sources[0].StudyInstanceUID
    series.SeriesInstanceUID = sources[0].SeriesInstanceUID
    series.ContourImageSequence = [_refer_to(source) for source in sources]
    study.RTReferencedSeriesSequence = [series]
    frame.RTReferencedStudySequence = [study]
    return frame


def _refer_to(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    return item


def _refer_to_slice(series: Series, sources: Sequence[Dataset], z: int) -> Dataset:
    if not series.frame_numbers:
        return _refer_to(sources[z])
    item = _refer_to(sources[0])
    item.ReferencedFrameNumber = series.frame_numbers[z]
    return item


def _describe(number: int, segment: Segment, origin: Origin, frame_of_reference_uid: str) -> Dataset:
    """Structure Set ROI."""
    region = Dataset()
    region.ROINumber = number
    region.ReferencedFrameOfReferenceUID = frame_of_reference_uid
    region.ROIName = segment.name[:LONGEST]
    region.ROIGenerationAlgorithm = "MANUAL"
    if origin.algorithm:
        region.ROIGenerationAlgorithm = "SEMIAUTOMATIC" if origin.annotator else "AUTOMATIC"
        region.ROIGenerationDescription = f"{origin.algorithm}, {origin.version or iopfl.__version__}"[:LONGEST]
    return region


def _observe(number: int, segment: Segment, origin: Origin) -> Dataset:
    """RT ROI Observations: what the region is."""
    code = segment.code or TISSUE
    kind = Dataset()
    kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning = code.value, code.scheme_designator, code.meaning
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.ROIObservationLabel = segment.name[:_SHORTEST]
    item.RTROIInterpretedType = ""
    item.ROIInterpreter = origin.person_name
    item.RTROIIdentificationCodeSequence = [kind]
    return item
