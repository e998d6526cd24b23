"""A mask out of a DICOM SEG, ours or anybody's: by segment, on the image's own grid, or a reason why not.

A SEG may lack the slices where nothing is drawn, come on another grid of the same
frame of reference, and number its segments as it likes. Structure sets are read too, by `rtstruct`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pydicom import Dataset
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from iopfl.base.errors import SeriesError
from iopfl.dicomio import rtstruct
from iopfl.dicomio.decoding import Decoder
from iopfl.dicomio.files import reading
from iopfl.dicomio.frames import count_frames, find_distance, find_group, find_plane, find_thickness
from iopfl.dicomio.grids import MAX_VOXELS, place_frames, resample_nearest
from iopfl.dicomio.labels import (
    Described,
    Drawn,
    Label,
    SegmentationError,
    check_belongs,
    check_value,
    fill,
    find_label,
    find_time,
)
from iopfl.dicomio.refusals import LABEL_MAP
from iopfl.dicomio.series import Series
from iopfl.dicomio.showing import show_uid

VALUE_PREFIX = "label value "
"""Begins the description of a segment whose label value is not its number."""


def referenced_series(ds: Dataset) -> str | None:
    """Series Instance UID of the images that a SEG or RTSTRUCT was drawn on, where it says so.

    Raises:
        SegmentationError: the header is broken.
    """
    with reading("the segmentation", SegmentationError):
        return next(iter(sorted(_find_series(ds))), None)


def read_segmentation(
    ds: Dataset,
    series: Series,
    values: Mapping[str, int] | None = None,
    *,
    codes: Mapping[str, Sequence[str]] | None = None,
) -> Label:
    """Read a SEG or RTSTRUCT onto a series' grid.

    Where a SEG has another grid, each voxel of the series takes the SEG's nearest one. A fractional SEG counts
    from one half. A voxel in two labels is an error: which one is right cannot be known.

    Args:
        ds: binary, fractional or label map SEG with pixel data, or a structure set.
        series: the image it was drawn on.
        values: label -> value of the task. A segment is the label that its Segment Label names (case and
            blanks do not matter), else the only label with its code. None: the object's own values.
        codes: label -> (value, scheme, ...) of the task.

    Raises:
        SegmentationError: of another series, with segments that the task does not have, overlapping, or unreadable.
    """
    with reading("the segmentation", SegmentationError):
        try:
            mask, names = _read(ds, series, values, codes or {})
        except SegmentationError:
            raise
        except SeriesError as error:  # of its planes or pixels
            raise SegmentationError(f"segmentation: {error}") from error
        return Label(
            mask=mask,
            names=names,
            annotator=str(ds.get("ContentCreatorName") or ds.get("OperatorsName") or "").strip("^ "),
            when=find_time(ds),
            description=str(ds.get("SeriesDescription") or ""),
        )


def _read(
    ds: Dataset, series: Series, values: Mapping[str, int] | None, codes: Mapping[str, Sequence[str]]
) -> tuple[np.ndarray, dict[int, str]]:
    if ds.get("SOPClassUID") == RTStructureSetStorage:
        check_belongs(_find_series(ds), rtstruct.find_frame_of_reference(ds), series)
        described = rtstruct.describe_regions(ds, values, codes)
        return rtstruct.draw_regions(ds, described, series), described.names
    if ds.get("SOPClassUID") not in (SegmentationStorage, LABEL_MAP):
        raise SegmentationError(f"expected a DICOM SEG, came SOP class {show_uid(ds.get('SOPClassUID'))}")
    drawn_on = _find_series(ds)
    sources = {str(item.get("ReferencedSOPInstanceUID")) for item in ds.get("SourceImageSequence") or []}
    if not drawn_on and sources & set(series.sop_instance_uids):
        drawn_on = {series.series_instance_uid}
    check_belongs(drawn_on, str(ds.get("FrameOfReferenceUID") or ""), series)
    described = _describe_segments(ds, values, codes)
    return _draw(ds, described, series), described.names


def _find_series(ds: Dataset) -> set[str]:
    items = ds.get("ReferencedSeriesSequence") or []
    return rtstruct.find_series(ds) | {str(item.SeriesInstanceUID) for item in items if item.get("SeriesInstanceUID")}


def _describe_segments(ds: Dataset, values: Mapping[str, int] | None, codes: Mapping[str, Sequence[str]]) -> Described:
    by_number = {}
    for item in ds.get("SegmentSequence") or []:
        number, name = int(item.SegmentNumber), str(item.get("SegmentLabel") or "").strip()
        if values is None:
            by_number[number] = Drawn(name or str(number), _own_value(item, number))
        else:
            label = find_label(name, item.get("SegmentedPropertyTypeCodeSequence") or [], values, codes)
            by_number[number] = Drawn(label or name, None if label is None else values[label])
    if not by_number:
        raise SegmentationError("expected at least one described segment, came none")
    return Described(by_number, tuple(values or ()))


def _own_value(item: Dataset, number: int) -> int:
    said = str(item.get("SegmentDescription") or "")
    digits = said.removeprefix(VALUE_PREFIX)
    return check_value(int(digits) if said.startswith(VALUE_PREFIX) and digits.isdecimal() else number)


def _draw(ds: Dataset, described: Described, series: Series) -> np.ndarray:
    """Every frame's segment, on the series' grid, (X, Y, Z)."""
    rows, columns = int(ds.Rows), int(ds.Columns)
    if series.has_geometry:
        planes = [find_plane(ds, index) for index in range(count_frames(ds))]
        slices, affine = place_frames(
            planes, series.frames_affine, distance=find_distance(ds), thickness=find_thickness(ds)
        )
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
                fill(volume[slices[index]], drawn, number, described.find_value(number))
    mask = resample_nearest(volume.transpose(2, 1, 0), affine, series.frames_shape, series.frames_affine)
    if volume.any() and not mask.any():
        raise SegmentationError("expected a segmentation within the image, but all of it lies outside")
    return series.from_frames(mask)


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
