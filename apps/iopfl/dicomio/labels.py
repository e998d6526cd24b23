"""What SEG and RTSTRUCT share: whose label something drawn is, whether it belongs to a series, and the result."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from pydicom import Dataset
from pydicom.valuerep import DA, TM

from iopfl.base.errors import SeriesError
from iopfl.dicomio.series import Series
from iopfl.dicomio.showing import show_label, show_uid
from iopfl.images.codes import fold_name, is_general, normalize_code

_NUMBERED = re.compile(r"((unnamed|segment|segmentation|label|mask|region|roi|object|class|structure)[ _-]*)?\d*")


class SegmentationError(SeriesError):
    """A segmentation cannot be read, or is none of this image or task."""


@dataclass(frozen=True, eq=False)
class Label:
    """What was drawn on an image.

    Attributes:
        mask: (X, Y, Z) uint8 label values on the image's grid.
        names: label value -> the segment's label.
        annotator: content creator; empty = not said.
        when: content date and time, local; None = not said.
        description: the Series Description of the segmentation.
        notes: what whoever reads it should know, as sentences.
    """

    mask: np.ndarray
    names: Mapping[int, str]
    annotator: str = ""
    when: datetime | None = None
    description: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawn:
    """A segment or region as its object describes it.

    Attributes:
        name: that it carries, or of the label that it is.
        value: that label's value; None = there is none.
        is_something_else: whether it is told what it is instead, so that it may be passed over.
    """

    name: str
    value: int | None
    is_something_else: bool = False


@dataclass(frozen=True)
class Described:
    """All segments or regions of an object by number, and the labels that were expected."""

    by_number: Mapping[int, Drawn]
    expected: tuple[str, ...]

    @property
    def names(self) -> dict[int, str]:
        """Label value -> name, of those that are labels."""
        return {drawn.value: drawn.name for drawn in self.by_number.values() if drawn.value is not None}

    @property
    def came(self) -> str:
        """Their names, for a message."""
        return ", ".join(show_label(drawn.name) for drawn in self.by_number.values()) or "none"

    @property
    def passed_over(self) -> list[str]:
        """Names of what is something else than the labels, for a message."""
        return [show_label(drawn.name) for drawn in self.by_number.values() if drawn.is_something_else]

    def find_value(self, number: int) -> int | None:
        """Label value of a segment that has voxels; None = it is something else.

        Raises:
            SegmentationError: it is not described, or may be a label of the task.
        """
        drawn = self.by_number.get(number)
        if drawn is None:
            raise SegmentationError(f"expected the described segments {sorted(self.by_number)}, given segment {number}")
        if drawn.value is None and not (drawn.is_something_else and self.names):
            raise SegmentationError(
                f"expected segments labeled {', '.join(map(repr, self.expected))}, given {self.came}: segment {number} "
                "is no label of the task; rename it, or remove it"
            )
        return drawn.value


def is_something_else(name: str, labels: Iterable[str]) -> bool:
    """Whether a name says that something is none of some labels: no number of a program's own, nor part of a label."""
    said = fold_name(name)
    return not _NUMBERED.fullmatch(said) and not any(fold_name(label) in said for label in labels)


def kinds_of(segment: Dataset) -> list[Dataset]:
    """Code items that say what a segment is: its type and, where that is only tissue or organ, its anatomic region."""
    types = list(segment.get("SegmentedPropertyTypeCodeSequence") or [])
    is_open = all(is_general(str(kind.get("CodeValue")), str(kind.get("CodingSchemeDesignator"))) for kind in types)
    return types + (list(segment.get("AnatomicRegionSequence") or []) if is_open else [])


def find_label(
    name: str, kinds: Sequence[Dataset], values: Mapping[str, int], codes: Mapping[str, Sequence[str]]
) -> str | None:
    """The task's label that something drawn is: by its name, else by a code where one label alone has it.

    Args:
        name: that it carries; case and blanks around it do not matter.
        kinds: items of its code sequences; the first that is a label's counts.
        values: label -> value.
        codes: label -> (code value, coding scheme, ...).
    """
    labels = [label for label in values if fold_name(label) == fold_name(name)]
    for kind in kinds if not labels else ():
        wanted = normalize_code(str(kind.get("CodeValue")), str(kind.get("CodingSchemeDesignator")))
        labels = [label for label in values if normalize_code(*tuple(codes.get(label, ("", "")))[:2]) == wanted]
        if labels:
            break
    return labels[0] if len(labels) == 1 else None


def check_value(value: int) -> int:
    """An object's own number as a label value.

    Raises:
        SegmentationError: it does not fit a byte.
    """
    if not 0 <= value < 256:
        raise SegmentationError(f"expected label values up to 255, given {value}")
    return value


def check_belongs(drawn_on: set[str], frame_of_reference: str, series: Series) -> None:
    """Check that something was drawn on a series, or at least where the series is.

    Args:
        drawn_on: Series Instance UIDs that it names.
        frame_of_reference: UID that it names, or empty.
        series: the image.

    Raises:
        SegmentationError: on another series, elsewhere, or it does not say.
    """
    if drawn_on and series.series_instance_uid not in drawn_on:
        raise SegmentationError(
            f"expected a segmentation of series {series.series_instance_uid}, given one of "
            f"{', '.join(map(show_uid, sorted(drawn_on)))}; take the series it was drawn on"
        )
    if frame_of_reference and series.frame_of_reference_uid not in (None, frame_of_reference):
        raise SegmentationError(
            f"expected frame of reference {series.frame_of_reference_uid}, given {show_uid(frame_of_reference)}; "
            "draw on the series itself, or register first"
        )
    if not drawn_on and not (series.has_geometry and frame_of_reference == series.frame_of_reference_uid):
        raise SegmentationError("expected a segmentation that says which series it is of; this one says nothing")


def fill(plane: np.ndarray, drawn: np.ndarray, number: int, value: int) -> None:
    """Give voxels a label value, in place.

    Args:
        plane: label values so far.
        drawn: bool, of the same shape.
        number: the number of the segment, for the message.
        value: the value of its label.

    Raises:
        SegmentationError: another label is there already; which one is right cannot be known.
    """
    others = set(np.unique(plane[drawn]).tolist()) - {0, value}
    if others:
        raise SegmentationError(
            f"expected each voxel in one label, but segment {number} overlaps label value {sorted(others)[0]}; "
            "correct the segmentation"
        )
    plane[drawn] = value


def find_time(ds: Dataset) -> datetime | None:
    """When the content was made, local; None where it cannot be read."""
    try:
        date, time = ds.get("ContentDate"), ds.get("ContentTime")
        if "StructureSetDate" in ds:
            date, time = ds.StructureSetDate, ds.get("StructureSetTime")
        day, clock = DA(str(date or "")), TM(str(time or "0000"))
    except Exception:  # of pydicom, at broken bytes
        return None
    return datetime.combine(day, clock) if day and clock else None
