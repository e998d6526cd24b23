"""Which images are a task's: modality, body part, description, orientation, kind and size.

One function decides, `find_mismatch`, for the datastore of a folder and that of a PACS, the rules of the listener, the
commands and the viewers. What an image does not say never speaks against it, unless the task asks for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from iopfl.base.errors import ConfigError

if TYPE_CHECKING:
    from iopfl.core.task import Task

PICTURE, VOLUME = "picture", "volume"
ORIENTATIONS = ("sagittal", "coronal", "axial")
"""By the patient's axis that slices are stacked along: left-right, back-front, feet-head."""

SAID = ("modality", "body_part", "description", "orientation")
"""What an image may say or not, and a task may ask for."""

_NEARLY_CUBIC = 1.3
"""Ratio of the longest edge of a voxel to the next, below which a volume has no slices to speak of."""
_NOTHING = ("", "UNKNOWN", "NONE", "NA", "N/A", "OTHER")
"""Body parts that say nothing."""


@dataclass(frozen=True)
class Criteria:
    """What a task asks of its images besides `modality`; what is left out does not count.

    Attributes:
        body_parts: patterns of DICOM Body Part Examined, such as `*PROSTAT*`; one must match, in any case.
        description: regular expression found in the Series Description, in any case.
        orientations: how the slices may lie: axial, sagittal or coronal. Volumes of nearly cubic voxels have none.
        kind: `volume`, or `picture`, a photograph without a place in the patient.
        min_slices: smallest number of slices in a volume.
        max_slices: largest number of slices; 0 = any.
        min_edge: smallest number of rows, and of columns.
        max_edge: largest number of rows, and of columns; 0 = any.
        required: what an image must say, among modality, body_part, description and orientation; without it, it is
            none of the task's.
    """

    body_parts: tuple[str, ...] = ()
    description: str = ""
    orientations: tuple[str, ...] = ()
    kind: str = ""
    min_slices: int = 0
    max_slices: int = 0
    min_edge: int = 0
    max_edge: int = 0
    required: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_among("orientations", self.orientations, ORIENTATIONS)
        _check_among("required", self.required, SAID)
        _check_among("kind", [self.kind] if self.kind else [], (PICTURE, VOLUME))
        for name in ("slices", "edge"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low < 0 or high < 0 or (high and high < low):
                raise ConfigError(f"images: min_{name}, max_{name}: numbers from 0 expected, given {low}, {high}")
        if not all(part.strip() for part in self.body_parts):
            raise ConfigError("images: body_parts: patterns such as *PROSTAT* expected, given an empty one")
        try:
            re.compile(self.description)
        except re.error as error:
            raise ConfigError(f"images: description is no regular expression: {error}") from error


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image; empty or 0 = it is not.

    Attributes:
        modality: DICOM Modality.
        body_part: DICOM Body Part Examined, or what its Anatomic Region is called.
        description: DICOM Series Description.
        orientation: the orientation of its slices, one of `ORIENTATIONS`.
        kind: picture or volume.
        slices: how many; of a picture 1.
        rows: the number of rows in a slice.
        columns: the number of columns in a slice.
        channels: values of a pixel.
    """

    modality: str = ""
    body_part: str = ""
    description: str = ""
    orientation: str = ""
    kind: str = ""
    slices: int = 0
    rows: int = 0
    columns: int = 0
    channels: int = 0


def find_mismatch(task: Task, facts: ImageFacts, *, but: Collection[str] = ()) -> str | None:
    """Why an image is none of a task's, in words that may be shown and logged; None = it is one.

    Args:
        task: says what it asks for.
        facts: what is known of the image.
        but: fields of `ImageFacts` that are not looked at, since somebody who knows said so.
    """
    given = {name: getattr(facts, name) for name in vars(facts) if name not in but}
    wanted, kind = task.images, given.get("kind", "")
    modality = given.get("modality", "").strip()
    if modality and modality.upper() != task.modality.upper():
        return f"modality {_show(modality)} is not {task.modality!r}"
    if wanted.kind and kind not in ("", wanted.kind):
        return f"it is a {kind}, a {wanted.kind} is expected"
    channels = given.get("channels", 0)
    if kind == VOLUME and channels not in (0, task.channels):
        return f"its voxels have {channels} values, {task.channels} expected"
    if task.spatial_dims == 3 and given.get("slices") == 1:
        return "it is one slice, a volume is expected"
    part = given.get("body_part", "").strip().upper()
    is_wanted = any(fnmatchcase(part, pattern.upper()) for pattern in wanted.body_parts)
    if wanted.body_parts and part not in _NOTHING and not is_wanted:
        return f"body part {_show(part)} is none of {', '.join(wanted.body_parts)}"
    orientation = given.get("orientation", "")
    if wanted.orientations and orientation and orientation not in wanted.orientations:
        return f"its slices are {orientation}, {' or '.join(wanted.orientations)} ones are expected"
    sizes = {"slices": (given.get("slices", 0),), "edge": (given.get("rows", 0), given.get("columns", 0))}
    for name, found in sizes.items():
        low, high = getattr(wanted, f"min_{name}"), getattr(wanted, f"max_{name}")
        for size in filter(None, found):
            if size < low or (high and size > high):
                limit = f"at least {low}" if size < low else f"at most {high}"
                return f"it has {size} {name if name == 'slices' else 'rows or columns'}, {limit} expected"
    description = given.get("description", "")
    if wanted.description and description and not re.search(wanted.description, description, re.IGNORECASE):
        return f"its description is not like {wanted.description!r}"
    silent = [name for name in wanted.required if name in given and (given[name] or "").strip().upper() in _NOTHING]
    return f"it does not say its {silent[0].replace('_', ' ')}" if silent else None


def describe_mismatch(task: Task, reason: str | None) -> str:
    """The warning of an answer to an image that is none of its task's; "" without a reason."""
    return f"this image is outside task {task.name}: {reason}. It was answered since it was asked for" if reason else ""


def describe_volume(shape: Sequence[int], edges: np.ndarray, channels: int) -> ImageFacts:
    """What the grid of a volume says.

    Slices are stacked along an axis of one voxel, or along the longest edge of a voxel; where voxels are nearly
    cubic, there is no orientation.

    Args:
        shape: (X, Y, Z) as stored.
        edges: (3, 3), columns: from a voxel to the next along each axis, in mm, RAS or LPS.
        channels: values of a voxel.
    """
    single = [axis for axis in range(3) if shape[axis] == 1]
    lengths = np.linalg.norm(edges, axis=0)
    known = bool(np.isfinite(edges).all() and lengths.min() > 0)
    order = np.argsort(lengths)
    longest = int(order[2]) if known and lengths[order[2]] >= _NEARLY_CUBIC * lengths[order[1]] else None
    axis = single[0] if len(single) == 1 else longest
    orientation = find_orientation(edges[:, axis]) if known and axis is not None else ""
    others = [size for index, size in enumerate(shape) if index != (2 if axis is None else axis)]
    slices = shape[2 if axis is None else axis]
    return ImageFacts(
        orientation=orientation, kind=VOLUME, slices=slices, columns=others[0], rows=others[1], channels=channels
    )


def find_orientation(normal: Sequence[float] | np.ndarray) -> str:
    """The orientation of slices that are stacked in a direction (RAS or LPS): the axis that lies closest."""
    return ORIENTATIONS[int(np.abs(np.asarray(normal, dtype=float)).argmax())]


def is_nearly_cubic(thickness: float, spacing: Sequence[float]) -> bool:
    """Whether slices of a thickness (mm) are as thin as their pixels (mm), so that any cut shows as much."""
    return thickness < _NEARLY_CUBIC * max(spacing)


def _check_among(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    wrong = [value for value in given if value not in known]
    if wrong:
        raise ConfigError(f"images: {name}: one of {', '.join(known)} expected, given {wrong[0]!r}")


def _show(code: str) -> str:
    """A code of DICOM (VR CS) in words; what is none may be anything that somebody wrote."""
    return code if re.fullmatch(r"[A-Za-z0-9 _]{1,16}", code) else "an invalid value"
