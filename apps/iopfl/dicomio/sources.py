"""Which images a SEG or RTSTRUCT was drawn on, wherever it says so: their series, or the instances of its frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydicom import Dataset
from pydicom.multival import MultiValue

from iopfl.dicomio import rtstruct
from iopfl.dicomio.files import reading
from iopfl.dicomio.labels import SegmentationError

_ENOUGH = 64  # instances: whose series they are, the first tells


def referenced_series(ds: Dataset) -> str | None:
    """Series Instance UID of the images that a SEG or RTSTRUCT was drawn on, where it says so.

    Raises:
        SegmentationError: the header is broken.
    """
    return next(iter(sorted(all_referenced_series(ds))), None)


def all_referenced_series(ds: Dataset) -> set[str]:
    """Series Instance UIDs of all series that a SEG or RTSTRUCT names, in its own study and in others.

    Raises:
        SegmentationError: the header is broken.
    """
    with reading("the segmentation", SegmentationError):
        others = ds.get("StudiesContainingOtherReferencedInstancesSequence") or []
        items = [item for holder in (ds, *others) for item in holder.get("ReferencedSeriesSequence") or []]
        named = {str(item.SeriesInstanceUID) for item in items if item.get("SeriesInstanceUID")}
        return rtstruct.find_series(ds) | named


def referenced_instances(ds: Dataset) -> list[str]:
    """SOP Instance UIDs of images that a SEG or its frames name as their sources, some of them where there are many.

    Raises:
        SegmentationError: the header is broken.
    """
    found: dict[str, None] = {}
    with reading("the segmentation", SegmentationError):
        for item in _sources(ds):
            if uid := str(item.get("ReferencedSOPInstanceUID") or ""):
                found[uid] = None
            if len(found) >= _ENOUGH:
                break
    return list(found)


def frame_sources(ds: Dataset, index: int) -> list[tuple[str, int]]:
    """What one frame of a SEG was drawn on: SOP Instance UIDs, each with a frame's number (1 where there is one)."""
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    items = _in_groups(per_frame[index]) if index < len(per_frame) else iter(())
    return [
        (str(item.get("ReferencedSOPInstanceUID")), int(_first(item.get("ReferencedFrameNumber")) or 1))
        for item in items
    ]


def _sources(ds: Dataset) -> Iterator[Dataset]:
    for series in ds.get("ReferencedSeriesSequence") or []:
        yield from series.get("ReferencedInstanceSequence") or []
    yield from ds.get("SourceImageSequence") or []
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in ds.get(groups) or []:
            yield from _in_groups(group)


def _in_groups(group: Dataset) -> Iterator[Dataset]:
    for derivation in group.get("DerivationImageSequence") or []:
        yield from derivation.get("SourceImageSequence") or []


def _first(value: object) -> Any:
    return value[0] if isinstance(value, MultiValue) else value
