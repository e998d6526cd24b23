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
    is_something_else,
    kinds_of,
)
from iopfl.dicomio.refusals import LABEL_MAP
from iopfl.dicomio.series import Series
from iopfl.dicomio.showing import show_uid
from iopfl.dicomio.sources import all_referenced_series, frame_sources, referenced_instances

VALUE_PREFIX = "label value "
"""Begins the description of a segment whose label value is not its number."""


def read_segmentation(
    ds: Dataset,
    series: Series,
    values: Mapping[str, int] | None = None,
    *,
    codes: Mapping[str, Sequence[str]] | None = None,
) -> Label:
    """Read a SEG or RTSTRUCT onto a series' grid.

    Where a SEG has another grid, each voxel of the series takes the SEG's nearest one. A fractional SEG counts
    from one half. A voxel in two labels is an error: which one is right cannot be known. Segments that say that they
    are something else than the task's labels are passed over, and named in the notes.

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
            mask, described = _read(ds, series, values, codes or {})
        except SegmentationError:
            raise
        except SeriesError as error:  # of its planes or pixels
            raise SegmentationError(f"segmentation: {error}") from error
        return Label(
            mask=mask,
            names=described.names,
            annotator=str(ds.get("ContentCreatorName") or ds.get("OperatorsName") or "").strip("^ "),
            when=find_time(ds),
            description=str(ds.get("SeriesDescription") or ""),
            notes=_notes(ds, described),
        )


def _read(
    ds: Dataset, series: Series, values: Mapping[str, int] | None, codes: Mapping[str, Sequence[str]]
) -> tuple[np.ndarray, Described]:
    if ds.get("SOPClassUID") == RTStructureSetStorage:
        check_belongs(all_referenced_series(ds), rtstruct.find_frame_of_reference(ds), series)
        described = rtstruct.describe_regions(ds, values, codes)
        return rtstruct.draw_regions(ds, described, series), described
    if ds.get("SOPClassUID") not in (SegmentationStorage, LABEL_MAP):
        raise SegmentationError(f"expected a DICOM SEG, given SOP class {show_uid(ds.get('SOPClassUID'))}")
    drawn_on = all_referenced_series(ds)
    if not drawn_on and not set(referenced_instances(ds)).isdisjoint(series.sop_instance_uids):
        drawn_on = {series.series_instance_uid}
    check_belongs(drawn_on, str(ds.get("FrameOfReferenceUID") or ""), series)
    described = _describe_segments(ds, values, codes)
    return _draw(ds, described, series), described


def _notes(ds: Dataset, described: Described) -> tuple[str, ...]:
    notes = []
    if ds.get("SegmentationType") == "FRACTIONAL":
        notes.append(f"it is fractional: voxels count from {_full(ds) / 2:g} of {_full(ds)}, one half")
    if described.passed_over and described.expected:
        notes.append(f"segments that are no labels of the task are passed over: {', '.join(described.passed_over)}")
    return tuple(notes)


def _describe_segments(ds: Dataset, values: Mapping[str, int] | None, codes: Mapping[str, Sequence[str]]) -> Described:
    by_number = {}
    for item in ds.get("SegmentSequence") or []:
        number, name = int(item.SegmentNumber), str(item.get("SegmentLabel") or "").strip()
        if values is None:
            by_number[number] = Drawn(name or str(number), _own_value(item, number))
        else:
            label = find_label(name, kinds_of(item), values, codes)
            value = None if label is None else values[label]
            by_number[number] = Drawn(
                label or name, value, is_something_else=label is None and is_something_else(name, values)
            )
    if not by_number:
        raise SegmentationError("expected at least one described segment, given none")
    described = Described(by_number, tuple(values or ()))
    if not described.names:
        described.find_value(next(iter(by_number)))
    return described


def _own_value(item: Dataset, number: int) -> int:
    said = str(item.get("SegmentDescription") or "")
    digits = said.removeprefix(VALUE_PREFIX)
    return check_value(int(digits) if said.startswith(VALUE_PREFIX) and digits.isdecimal() else number)


def _draw(ds: Dataset, described: Described, series: Series) -> np.ndarray:
    """Every frame's segment, on the series' grid, (X, Y, Z)."""
    rows, columns = int(ds.Rows), int(ds.Columns)
    slices, affine = _place(ds, series)
    shape = (max(slices) + 1, rows, columns)
    if np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise SegmentationError(f"expected frames close to each other, but they span {shape[0]} slices")
    volume = np.zeros(shape, np.uint8)
    with Decoder() as decoder:
        for index, frame in enumerate(decoder.iterate(ds, raw=True)):
            for number, drawn in _split(ds, frame, index):
                if (value := described.find_value(number)) is not None:
                    fill(volume[slices[index]], drawn, number, value)
    mask = resample_nearest(volume.transpose(2, 1, 0), affine, series.frames_shape, series.frames_affine)
    if volume.any() and not mask.any():
        raise SegmentationError("expected a segmentation within the image, but all of it lies outside")
    return series.from_frames(mask)


def _place(ds: Dataset, series: Series) -> tuple[list[int], np.ndarray]:
    """The slice that each frame is, and the affine of the grid that these are of, RAS."""
    count, size = count_frames(ds), (int(ds.Columns), int(ds.Rows))
    if not series.has_geometry:
        if (*size, 1) != series.shape:
            raise SegmentationError(f"expected a mask of {series.shape[:2]} pixels, given {size}")
        return [0] * count, series.affine
    try:
        planes = [find_plane(ds, index) for index in range(count)]
    except SeriesError:  # without a place of their own, frames may be where the images are that they were drawn on
        slices = _find_slices(ds, series) if size == series.frames_shape[:2] else []
        if len(slices) != count:
            raise
        return slices, series.frames_affine
    return place_frames(planes, series.frames_affine, distance=find_distance(ds), thickness=find_thickness(ds))


def _find_slices(ds: Dataset, series: Series) -> list[int]:
    """The slice of the series that each frame was drawn on, as far as that is said."""
    if series.frame_numbers:
        known = {(series.sop_instance_uids[0], number): z for z, number in enumerate(series.frame_numbers)}
    else:
        known = {(uid, 1): z for z, uid in enumerate(series.sop_instance_uids)}
    found = ([known[s] for s in frame_sources(ds, index) if s in known] for index in range(count_frames(ds)))
    return [slices[0] for slices in found if slices]


def _split(ds: Dataset, frame: np.ndarray, index: int) -> Iterator[tuple[int, np.ndarray]]:
    """Segment numbers and where they are in a frame, (rows, columns) bool; empty ones are passed over."""
    if ds.SOPClassUID == LABEL_MAP or ds.get("SegmentationType") == "LABELMAP":
        background = (0, ds.get("PixelPaddingValue"))
        for number in np.unique(frame).tolist():
            if number not in background:
                yield number, frame == number
        return
    number = int(find_group(ds, index, "SegmentIdentificationSequence").ReferencedSegmentNumber)
    drawn = frame >= 0.5 * _full(ds) if ds.get("SegmentationType") == "FRACTIONAL" else frame != 0
    if drawn.any():
        yield number, drawn


def _full(ds: Dataset) -> int:
    """What stands for the whole voxel in a fractional SEG; where it is not said, all that its bits can hold."""
    return int(ds.get("MaximumFractionalValue") or (1 << int(ds.BitsStored)) - 1)
