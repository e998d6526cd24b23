"""A structured report of a mask: volume and long axis of each label, what made it, and how far the experts agree.

Source: TID 1500, Measurement Report (PS3.16), as a Comprehensive 3D SR (PS3.3 A.35.13). Each label has a group of its
own, which refers to its segment in the SEG; one that was not drawn says so with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
    ReferencedSegment,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from iopfl.core import measuring
from iopfl.dicomio.derived import NOT_FOR_CLINICAL_USE, Origin, finish, outline_sources
from iopfl.dicomio.segmentation import TISSUE, Segment
from iopfl.dicomio.series import Series

SERIES_NUMBER = 9001

_ENGLISH = CodedConcept("en-US", "RFC5646", "English (United States)")
_MILLILITER = Code("ml", "UCUM", "milliliter")
_PIXELS = Code("{pixels}", "UCUM", "pixels")


def build_report(
    segmentation: Dataset,
    series: Series,
    segments: Sequence[Segment],
    measurements: Sequence[measuring.Measurement],
    origin: Origin,
    *,
    quality: float | None = None,
) -> Dataset:
    """Build the report of a mask.

    Args:
        segmentation: the SEG of the same mask.
        series: what was segmented.
        segments: those of the SEG, in its order.
        measurements: one for each segment, in the same order.
        origin: who or what made the mask.
        quality: agreement of the bank's experts with the mask, 0 to 1; None where nobody asked for it.

    Returns:
        An instance of Comprehensive 3D SR Storage in a series of its own, uncompressed Explicit VR Little Endian.
    """
    algorithm = _identify(origin, quality, series.left_out)
    source = SourceSeriesForSegmentation(series.series_instance_uid)
    groups = [
        _build_group(segmentation, source, number, segment, measured, algorithm)
        for number, (segment, measured) in enumerate(zip(segments, measurements, strict=True), start=1)
    ]
    report = MeasurementReport(
        observation_context=_observe(origin),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(_ENGLISH),
    )
    ds = Comprehensive3DSR(
        evidence=[*outline_sources(series), segmentation],
        content=report[0],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="iopfl",
        is_complete=True,
        specific_character_set="ISO_IR 192",
    )
    finish(ds, series, origin)
    return ds


def _identify(origin: Origin, quality: float | None, left_out: Sequence[str]) -> AlgorithmIdentification | None:
    """TID 4019; quality score, warning and what was left out are its parameters: viewers show these as they are."""
    if not origin.algorithm:
        return None
    said = [NOT_FOR_CLINICAL_USE]
    if quality is not None:
        said.append(f"quality score (agreement of the experts, 0 to 1): {quality:.2f}")
    said += [f"left out of the series: {line}" for line in left_out]
    return AlgorithmIdentification(
        origin.algorithm, origin.version or "unknown", parameters=said, family=codes.cid7162.ArtificialIntelligence
    )


def _observe(origin: Origin) -> ObservationContext:
    """Who looked: the program always, and the person who drew or corrected."""
    program = DeviceObserverIdentifyingAttributes(generate_uid(entropy_srcs=["iopfl"]), name="iopfl")
    person = None
    if origin.annotator:
        attributes = PersonObserverIdentifyingAttributes(origin.person_name)
        person = ObserverContext(codes.DCM.Person, attributes)
    return ObservationContext(person, ObserverContext(codes.DCM.Device, program))


def _build_group(
    segmentation: Dataset,
    source: SourceSeriesForSegmentation,
    number: int,
    segment: Segment,
    measured: measuring.Measurement,
    algorithm: AlgorithmIdentification | None,
) -> MeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations:
    """TID 1411 of a segment, or TID 1501 of a label without a voxel."""
    if measured.volume is None:
        sizes = [Measurement(codes.SCT.Area, measured.voxels, _PIXELS)]
    else:
        sizes = [Measurement(codes.SCT.Volume, round(measured.volume, 4), _MILLILITER)]
    unit = _PIXELS if measured.volume is None else codes.UCUM.Millimeter
    sizes.append(Measurement(codes.SCT.LongAxis, round(measured.long_axis, 3), unit))
    tracking = TrackingIdentifier(generate_uid(), segment.name)
    kind = segment.code or TISSUE
    if not measured.voxels:
        return MeasurementsAndQualitativeEvaluations(
            tracking, finding_type=kind, algorithm_id=algorithm, measurements=sizes
        )
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking,
        referenced_segment=ReferencedSegment(
            segmentation.SOPClassUID, segmentation.SOPInstanceUID, number, source_series=source
        ),
        finding_type=kind,
        finding_category=segment.category,
        algorithm_id=algorithm,
        measurements=sizes,
    )
