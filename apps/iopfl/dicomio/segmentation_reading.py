"""A mask out of a DICOM SEG, ours or anybody's: by segment, on the image's own grid, or a reason why not.

A SEG may lack the slices where nothing is drawn, come on another grid of the same
frame of reference, and number its segments as it likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from pydicom import Dataset
from pydicom.uid import SegmentationStorage
from pydicom.valuerep import DA, TM

from iopfl.core.errors import SeriesError
from iopfl.dicomio.decoding import Decoder
from iopfl.dicomio.files import reading
from iopfl.dicomio.frames import count_frames, find_group, find_plane, find_thickness
from iopfl.dicomio.geometry import Plane
from iopfl.dicomio.grids import MAX_VOXELS, place_frames, resample_nearest
from iopfl.dicomio.refusals import LABEL_MAP
from iopfl.dicomio.series import Series
from iopfl.dicomio.showing import show_label, show_uid

VALUE_PREFIX = "label value "
"""Begins the description of a segment whose label value is not its number."""


class SegmentationError(SeriesError):
    """A DICOM SEG cannot be read, or is none of this image or task."""


@dataclass(frozen=True, eq=False)
class Label:
    """What was drawn on an image.

    Attributes:
        mask: (X, Y, Z) uint8 label values on the image's grid.
        names: label value -> the segment's label.
        annotator: content creator; empty = not said.
        when: content date and time, local; None = not said.
        description: of the SEG's series.
    """

    mask: np.ndarray
    names: Mapping[int, str]
    annotator: str = ""
    when: datetime | None = None
    description: str = ""


def referenced_series(ds: Dataset) -> str | None:
    """Series Instance UID of the images that a SEG was drawn on, where it says so.

    Raises:
        SegmentationError: the header is broken.
    """
    with reading("the segmentation", SegmentationError):
        for item in ds.get("ReferencedSeriesSequence") or []:
            if item.get("SeriesInstanceUID"):
                return str(item.SeriesInstanceUID)
    return None


def find_time(ds: Dataset) -> datetime | None:
    """Content Date and Time, local; None where they cannot be read."""
    try:
        day, clock = DA(str(ds.get("ContentDate") or "")), TM(str(ds.get("ContentTime") or "0000"))
    except Exception:  # of pydicom, at broken bytes
        return None
    return datetime.combine(day, clock) if day and clock else None


def read_segmentation(
    ds: Dataset,
    series: Series,
    values: Mapping[str, int] | None = None,
    *,
    codes: Mapping[str, Sequence[str]] | None = None,
) -> Label:
    """Read a SEG onto a series' grid.

    Where the SEG has another grid, each voxel of the series takes the SEG's nearest one. A fractional SEG counts
    from one half. A voxel in two labels is an error: which one is right cannot be known.

    Args:
        ds: binary, fractional or label map SEG, with pixel data.
        series: the image it was drawn on.
        values: label -> value of the task. A segment is the label that its Segment Label names (case and
            blanks do not matter), else the only label with its code. None: the SEG's own values.
        codes: label -> (value, scheme, ...) of the task.

    Raises:
        SegmentationError: of another series, with segments that the task does not have, overlapping, or unreadable.
    """
    with reading("the segmentation", SegmentationError):
        try:
            _check_belongs(ds, series)
            segments = _map_segments(ds, values, codes or {})
            planes = _find_planes(ds) if series.has_geometry else []
            mask = _draw(ds, segments, planes, series)
        except SegmentationError:
            raise
        except SeriesError as error:  # of its planes or pixels
            raise SegmentationError(f"segmentation: {error}") from error
        described = segments.described.values()
        return Label(
            mask=mask,
            names={segment.value: segment.name for segment in described if segment.value is not None},
            annotator=str(ds.get("ContentCreatorName") or "").strip("^ "),
            when=find_time(ds),
            description=str(ds.get("SeriesDescription") or ""),
        )


@dataclass(frozen=True)
class _Segment:
    """A segment as the SEG describes it, and the value of the task's label that it is, if it is one."""

    name: str
    value: int | None


@dataclass(frozen=True)
class _Segments:
    """All segments of a SEG by number, and the labels that were expected."""

    described: Mapping[int, _Segment]
    expected: tuple[str, ...]

    def find_value(self, number: int) -> int:
        """Label value of a segment that has voxels."""
        segment = self.described.get(number)
        if segment is None:
            raise SegmentationError(f"expected the described segments {sorted(self.described)}, came segment {number}")
        if segment.value is None:
            names = ", ".join(show_label(other.name) for other in self.described.values())
            raise SegmentationError(
                f"expected segments labeled {', '.join(map(repr, self.expected))}, came {names}: segment {number} is "
                "no label of the task; rename it, or remove it"
            )
        return segment.value


def _check_belongs(ds: Dataset, series: Series) -> None:
    if ds.get("SOPClassUID") not in (SegmentationStorage, LABEL_MAP):
        raise SegmentationError(f"expected a DICOM SEG, came SOP class {show_uid(ds.get('SOPClassUID'))}")
    drawn_on = {str(item.get("SeriesInstanceUID")) for item in ds.get("ReferencedSeriesSequence") or []}
    sources = {str(item.get("ReferencedSOPInstanceUID")) for item in ds.get("SourceImageSequence") or []}
    if drawn_on and series.series_instance_uid not in drawn_on:
        raise SegmentationError(
            f"expected a segmentation of series {series.series_instance_uid}, came one of "
            f"{', '.join(map(show_uid, sorted(drawn_on)))}; take the series it was drawn on"
        )
    frame_of_reference = str(ds.get("FrameOfReferenceUID") or "")
    if frame_of_reference and series.frame_of_reference_uid not in (None, frame_of_reference):
        raise SegmentationError(
            f"expected frame of reference {series.frame_of_reference_uid}, came {show_uid(frame_of_reference)}; "
            "draw on the series itself, or register first"
        )
    named = drawn_on or sources & set(series.sop_instance_uids)
    if not named and not (series.has_geometry and frame_of_reference == series.frame_of_reference_uid):
        raise SegmentationError("expected a segmentation that says which series it is of; this one says nothing")


def _map_segments(ds: Dataset, values: Mapping[str, int] | None, codes: Mapping[str, Sequence[str]]) -> _Segments:
    described = {}
    for item in ds.get("SegmentSequence") or []:
        number, name = int(item.SegmentNumber), str(item.get("SegmentLabel") or "").strip()
        if values is None:
            described[number] = _Segment(name or str(number), _own_value(item, number))
        else:
            label = _find_label(item, name, values, codes)
            described[number] = _Segment(label or name, None if label is None else values[label])
    if not described:
        raise SegmentationError("expected at least one described segment, came none")
    return _Segments(described, tuple(values or ()))


def _find_label(item: Dataset, name: str, values: Mapping[str, int], codes: Mapping[str, Sequence[str]]) -> str | None:
    """The task's label that a segment is: by its name, else by its code where one label alone has it."""
    labels = [label for label in values if label.strip().casefold() == name.casefold()]
    if not labels and item.get("SegmentedPropertyTypeCodeSequence"):
        code = item.SegmentedPropertyTypeCodeSequence[0]
        wanted = (str(code.get("CodeValue")), str(code.get("CodingSchemeDesignator")))
        labels = [label for label in values if tuple(codes.get(label, ()))[:2] == wanted]
    return labels[0] if len(labels) == 1 else None


def _own_value(item: Dataset, number: int) -> int:
    said = str(item.get("SegmentDescription") or "")
    digits = said.removeprefix(VALUE_PREFIX)
    value = int(digits) if said.startswith(VALUE_PREFIX) and digits.isdecimal() else number
    if not 0 <= value < 256:
        raise SegmentationError(f"expected label values up to 255, came {value}")
    return value


def _find_planes(ds: Dataset) -> list[Plane]:
    return [find_plane(ds, index) for index in range(count_frames(ds))]


def _draw(ds: Dataset, segments: _Segments, planes: Sequence[Plane], series: Series) -> np.ndarray:
    """Every frame's segment, on the series' grid, (X, Y, Z)."""
    rows, columns = int(ds.Rows), int(ds.Columns)
    if planes:
        slices, affine = place_frames(planes, find_thickness(ds), series.affine)
    else:
        slices, affine = [0] * count_frames(ds), series.affine
        if (columns, rows, 1) != series.shape:
            raise SegmentationError(f"expected a mask of {series.shape[:2]} pixels, came {(columns, rows)}")
    shape = (max(slices) + 1, rows, columns)
    if np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise SegmentationError(f"expected frames close to each other, but they span {shape[0]} slices")
    volume = np.zeros(shape, np.uint8)
    with Decoder() as decoder:
        for index, frame in enumerate(decoder.iterate(ds, raw=True)):
            for number, drawn in _split(ds, frame, index):
                _fill(volume[slices[index]], drawn, number, segments.find_value(number))
    return resample_nearest(volume.transpose(2, 1, 0), affine, series.shape, series.affine)


def _split(ds: Dataset, frame: np.ndarray, index: int) -> Iterator[tuple[int, np.ndarray]]:
    """Segment numbers and where they are in a frame, (rows, columns) bool; empty ones are passed over."""
    if ds.SOPClassUID == LABEL_MAP or ds.get("SegmentationType") == "LABELMAP":
        for number in np.unique(frame[frame != 0]).tolist():
            yield number, frame == number
        return
    number = int(find_group(ds, index, "SegmentIdentificationSequence").ReferencedSegmentNumber)
    fractional = ds.get("SegmentationType") == "FRACTIONAL"
    drawn = frame >= 0.5 * int(ds.MaximumFractionalValue) if fractional else frame != 0
    if drawn.any():
        yield number, drawn


def _fill(plane: np.ndarray, drawn: np.ndarray, number: int, value: int) -> None:
    """Draw one segment of one frame."""
    others = set(np.unique(plane[drawn]).tolist()) - {0, value}
    if others:
        raise SegmentationError(
            f"expected each voxel in one label, but segment {number} overlaps label value {sorted(others)[0]}; "
            "correct the segmentation"
        )
    plane[drawn] = value
