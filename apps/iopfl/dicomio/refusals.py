"""Which DICOM instances are images to segment, and why the others are not; headers only, hence cheap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pydicom import Dataset, uid
from pydicom.multival import MultiValue
from pydicom.uid import UID

from iopfl.base.errors import SeriesError
from iopfl.dicomio.showing import AT_SOURCE, show_uid

LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")
"""Label Map Segmentation Storage, which pydicom 3.0 does not name."""

SLICES = frozenset(
    (
        uid.CTImageStorage,
        uid.MRImageStorage,
        uid.PositronEmissionTomographyImageStorage,
    )
)
"""One instance per slice, placed in the patient (PS3.3 C.7.6.2)."""

VOLUMES = frozenset(
    (
        uid.EnhancedCTImageStorage,
        uid.EnhancedMRImageStorage,
        uid.EnhancedPETImageStorage,
        uid.LegacyConvertedEnhancedCTImageStorage,
        uid.LegacyConvertedEnhancedMRImageStorage,
        uid.LegacyConvertedEnhancedPETImageStorage,
        uid.OphthalmicTomographyImageStorage,
    )
)
"""Multi-frame, each frame placed by its functional groups (PS3.3 C.7.6.16)."""

PICTURES = frozenset(
    (
        uid.OphthalmicPhotography8BitImageStorage,
        uid.OphthalmicPhotography16BitImageStorage,
        uid.VLPhotographicImageStorage,
        uid.DermoscopicPhotographyImageStorage,
        uid.ComputedRadiographyImageStorage,
        uid.DigitalXRayImageStorageForPresentation,
        uid.DigitalXRayImageStorageForProcessing,
        uid.DigitalMammographyXRayImageStorageForPresentation,
        uid.DigitalMammographyXRayImageStorageForProcessing,
        uid.UltrasoundImageStorage,
        uid.XRayAngiographicImageStorage,
    )
)
"""One picture an instance, without a place in the patient."""

IMAGES = SLICES | VOLUMES | PICTURES
"""Every SOP class that is read."""

_OBJECTS = {
    uid.SegmentationStorage: "a segmentation (SEG)",
    LABEL_MAP: "a label map segmentation (SEG)",
    uid.SurfaceSegmentationStorage: "a surface segmentation",
    uid.RTStructureSetStorage: "a radiotherapy structure set (RTSTRUCT)",
    uid.RTDoseStorage: "a radiotherapy dose",
    uid.RTPlanStorage: "a radiotherapy plan",
    uid.RTImageStorage: "a radiotherapy image",
    uid.KeyObjectSelectionDocumentStorage: "a key object selection",
    uid.EncapsulatedPDFStorage: "a PDF document",
    uid.RawDataStorage: "raw data",
    uid.SpatialRegistrationStorage: "a registration",
    uid.DeformableSpatialRegistrationStorage: "a registration",
    uid.RealWorldValueMappingStorage: "a real world value mapping",
    uid.ParametricMapStorage: "a parametric map",
    uid.MRSpectroscopyStorage: "a spectroscopy",
    uid.MediaStorageDirectoryStorage: "a directory (DICOMDIR)",
}
_FAMILIES = {
    "1.2.840.10008.5.1.4.1.1.11.": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.88.": "a structured report",
    "1.2.840.10008.5.1.4.1.1.9.": "a waveform",
    "1.2.840.10008.5.1.4.1.1.104.": "an encapsulated document",
    "1.2.840.10008.5.1.4.1.1.481.": "a radiotherapy object",
}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LOCALIZERS = frozenset(("LOCALIZER", "SCOUT", "TOPOGRAM"))
_ACCEPTED = "expected a CT, MR or PET image, an ophthalmic or other photograph, or a radiograph"


def find_refusal(ds: Dataset) -> str | None:
    """Why an instance is no image to segment, or None.

    Args:
        ds: its header; that of a DICOMweb answer will do.
    """
    try:
        sop_class = UID(str(ds.get("SOPClassUID", "")))
        kinds = {str(kind).upper() for kind in _as_list(ds.get("ImageType"))}
    except Exception as error:  # pydicom parses values here, and broken bytes raise anything
        return f"its header cannot be read ({type(error).__name__}): {AT_SOURCE}"
    if not sop_class:
        return f"it has no SOP Class UID; {_ACCEPTED}"
    if sop_class == _SECONDARY_CAPTURE or sop_class.startswith(_SECONDARY_CAPTURE + "."):
        return f"it is a secondary capture, a picture of an image; {_ACCEPTED}: send the original series"
    if is_other_object(ds):
        return f"it is {_describe(sop_class)}; {_ACCEPTED}"
    if sop_class not in IMAGES:
        return f"its SOP class {show_uid(sop_class)} is none that is read; {_ACCEPTED}"
    if kinds & _LOCALIZERS:
        return "it is a localizer (Image Type); send the series that was planned on it"
    if "MOSAIC" in kinds:
        return (
            "it is a Siemens mosaic, many slices in one picture; export it as enhanced multi-frame, or one slice each"
        )
    return None


def find_series_refusal(headers: Sequence[Dataset]) -> str | None:
    """Why a series is no image to segment, or None: by most of its instances, among which may be a scout.

    Args:
        headers: those of all its instances.
    """
    reasons = [find_refusal(ds) for ds in headers]
    refused = [ds for ds, reason in zip(headers, reasons, strict=True) if reason]
    if not refused or 2 * _count_images(refused) < _count_images(headers):
        return None
    which = "" if len(refused) == len(headers) else f"{len(refused)} of {len(headers)} instances: "
    return f"{which}{Counter(filter(None, reasons)).most_common(1)[0][0]}"


def _count_images(headers: Sequence[Dataset]) -> int:
    """Instances, or their frames."""
    said = [str(ds.get("NumberOfFrames") or 1) for ds in headers]
    return sum(int(number) if number.isdecimal() else 1 for number in said)


def choose_header(headers: Iterable[Dataset]) -> Dataset:
    """The header that speaks for a series: of the first image that is like another one, of which no more are asked for.

    Raises:
        SeriesError: none is an image; the message says why.
    """
    refused: list[Dataset] = []
    by_look: dict[str, Dataset] = {}
    for ds in headers:
        if find_refusal(ds):
            refused.append(ds)
            continue
        look = _look_of(ds)
        if look in by_look:
            return by_look[look]
        by_look[look] = ds
    if not by_look:
        raise SeriesError(find_series_refusal(refused) or "expected an image series, given nothing")
    return next(iter(by_look.values()))


def are_alike(headers: Sequence[Dataset]) -> bool:
    """Whether instances are images of one size and orientation."""
    return not any(map(find_refusal, headers)) and len(set(map(_look_of, headers))) == 1


def _look_of(ds: Dataset) -> str:
    return str([ds.get(keyword) for keyword in ("Rows", "Columns", "ImageOrientationPatient")])


def is_other_object(ds: Dataset) -> bool:
    """Whether an instance is no image at all: a SEG, a report, a plan, a directory."""
    return bool(_describe(UID(str(ds.get("SOPClassUID", "")))))


def _describe(sop_class: UID) -> str:
    family = next((name for prefix, name in _FAMILIES.items() if sop_class.startswith(prefix)), "")
    return _OBJECTS.get(sop_class, family)


def _as_list(value: object) -> list:
    """The values of an element, whatever its multiplicity."""
    if not value:
        return []
    return list(value) if isinstance(value, MultiValue) else [value]
