"""Segmentations as NRRD: segments with names, cropped to what is drawn, in layers where they overlap.

3D Slicer's (`.seg.nrrd`; its user guide, "Segmentation file (.seg.nrrd)") have fields `Segment0_Name`, `Segment0_Layer`
and so on in their header; MITK's one of JSON, or before 2023 one of XML for each label (its MultiLabel IO).
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iopfl.base.errors import SeriesError
from iopfl.images.codes import is_general
from iopfl.images.files import find_flips, read_nrrd, read_nrrd_fields

_ALIGNED = 0.1
"""Voxels by which a segmentation's grid may lie beside the image's: headers are rounded."""

_MITK = "org.mitk.multilabel.segmentation.labelgroups"
_OLD_MITK = "org.mitk.label_"


@dataclass(frozen=True)
class Segment:
    """What the header says of a segment.

    Attributes:
        name: what it is called.
        value: the value of its voxels, in its layer.
        layer: where it is.
        codes: value and coding scheme of what it is, then of where, as far as it says.
    """

    name: str
    value: int
    layer: int
    codes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A segmentation as stored.

    Attributes:
        layers: (L, X, Y, Z) values.
        affine: (4, 4), voxel index to RAS mm.
        segments: all that are described.
    """

    layers: np.ndarray
    affine: np.ndarray
    segments: tuple[Segment, ...]


def is_segmentation(path: Path) -> bool:
    """Whether a file is an NRRD whose header describes segments."""
    if not path.name.lower().endswith(".nrrd"):
        return False
    return any(_find_key(field) or field.startswith((_MITK, _OLD_MITK)) for field in read_nrrd_fields(path))


def read_segmentation(path: Path) -> Segmentation:
    """Read a segmentation.

    Raises:
        SeriesError: it cannot be read, or its header does not say where it lies.
    """
    array, fields = read_nrrd(path)
    count = array.ndim - 3
    kinds = [str(kind) for kind in fields.get("kinds", [])]
    directions = np.asarray(fields.get("space directions", np.eye(3)), dtype=float)
    if count == 1:
        undirected = [axis for axis, row in enumerate(directions) if not np.isfinite(row).all()]
        axis = undirected[0] if len(undirected) == 1 else next((i for i, k in enumerate(kinds) if k == "list"), -1)
        array = np.moveaxis(array, axis, 0)
        directions = np.delete(directions, axis, axis=0) if len(directions) == 4 else directions
    elif count == 0:
        array = array[None]
    flips = find_flips(fields)
    if count not in (0, 1) or directions.shape != (3, 3) or flips is None:
        raise SeriesError(f"label {path.name}: expected a segmentation in three dimensions of a patient; save it again")
    affine = np.eye(4)
    affine[:3, :3] = directions.T
    affine[:3, 3] = np.asarray(fields.get("space origin", np.zeros(3)), dtype=float)
    return Segmentation(array, np.diag([*flips, 1]) @ affine, _read_segments(fields, len(array), path))


def place_segments(path: Path, found: Segmentation, like: Tensor, affine: np.ndarray) -> dict[str, Tensor]:
    """Put what is drawn onto an image's grid.

    Args:
        path: for messages.
        found: the segmentation.
        like: the image, (C, X, Y, Z).
        affine: (4, 4) of the image, to RAS mm.

    Returns:
        Name -> (X, Y, Z) bool, of segments that have voxels.

    Raises:
        SeriesError: its voxels are not the image's, it is drawn beside the image, or in values that have no name.
    """
    shape = tuple(like.shape[1:])
    first = _find_offset(path, found, shape, affine)
    target, source = [], []
    for start, size, edge in zip(first, found.layers.shape[1:], shape, strict=True):
        low, high = max(start, 0), max(min(start + size, edge), 0)
        target.append(slice(low, max(high, low)))
        source.append(slice(low - start, max(high, low) - start))
    drawn: dict[str, Tensor] = {}
    for number, layer in enumerate(found.layers):
        values = {float(value) for value in np.unique(layer)} - {0.0}
        named: dict[int, str] = {}
        for segment in found.segments:
            if segment.layer == number and named.setdefault(segment.value, segment.name) != segment.name:
                raise SeriesError(
                    f"label {path.name}: layer {number} has one value, {segment.value}, for two segments of its "
                    "header; give each its own, and save it again"
                )
        if values - named.keys():
            raise SeriesError(
                f"label {path.name}: layer {number} holds the value {min(values - named.keys()):g}, which no segment "
                "of its header has; save it again"
            )
        for value in sorted(values):
            part = layer == value
            inside = part[tuple(source)]
            if part.sum() != inside.sum():
                raise SeriesError(f"label {path.name}: drawn beside the image; remove what lies beside it")
            place = drawn.setdefault(named[int(value)], torch.zeros(shape, dtype=torch.bool))
            place[tuple(target)] |= torch.from_numpy(np.ascontiguousarray(inside))
    return drawn


def _find_offset(path: Path, found: Segmentation, shape: tuple[int, ...], affine: np.ndarray) -> list[int]:
    """Index in the image of the segmentation's first voxel."""
    there = np.linalg.solve(affine, found.affine)
    first = np.round(there[:3, 3])
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in found.layers.shape[1:]])).reshape(3, -1)
    apart = np.abs(there[:3, :3] @ corners + there[:3, 3:] - corners - first[:, None]).max()
    if not np.isfinite(apart) or apart > _ALIGNED:
        raise SeriesError(
            f"label {path.name}: expected voxels that are the image's ({' x '.join(map(str, shape))}), but its grid "
            "is another one; set the image as the segmentation's source geometry, and save it again"
        )
    return [int(index) for index in first]


def _find_key(field: str) -> re.Match[str] | None:
    return re.fullmatch(r"Segment(\d{1,5})_(\w+)", field)


def _read_segments(fields: Mapping[str, Any], layers: int, path: Path) -> tuple[Segment, ...]:
    try:
        if _MITK in fields:
            return tuple(_read_mitk(json.loads(fields[_MITK])))
        old = [(field, str(text)) for field, text in fields.items() if field.startswith(_OLD_MITK)]
        return tuple(_read_old_mitk(old) if old else _read_slicer(fields, layers))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise SeriesError(
            f"label {path.name}: its header does not say name and whole number of each segment; save it again"
        ) from error


def _read_slicer(fields: Mapping[str, Any], layers: int) -> Iterator[Segment]:
    described: dict[int, dict[str, str]] = {}
    for field, text in fields.items():
        if key := _find_key(field):
            described.setdefault(int(key[1]), {})[key[2]] = str(text)
    for number, about in sorted(described.items()):
        # Files of older versions have a layer for each segment, and say neither.
        value, layer = int(about.get("LabelValue", 1)), int(about.get("Layer", number if layers > 1 else 0))
        yield Segment(about.get("Name", about.get("ID", "")), value, layer, _find_codes(about.get("Tags", "")))


def _read_mitk(groups: Any) -> Iterator[Segment]:
    for layer, group in enumerate(groups):
        for label in group["labels"]:
            yield Segment(str(label["name"]), int(label["value"]), layer)


def _read_old_mitk(labels: Sequence[tuple[str, str]]) -> Iterator[Segment]:
    for field, text in labels:
        about = {
            key: html.unescape(found[1])
            for key in ("name", "value")
            if (found := re.search(rf'<property key="{key}"[^>]*>\s*<\w+ value="([^"]*)"', text))
        }
        layer = int(field.removeprefix(_OLD_MITK).partition("_")[0])
        if int(about["value"]):  # 0 is what is outside
            yield Segment(about["name"], int(about["value"]), layer)


def _find_codes(tags: str) -> tuple[tuple[str, str], ...]:
    """Codes of a terminology entry: `context~category~type~modifier~context~region~modifier`, triplets all but two."""
    entry = re.search(r"TerminologyEntry:([^|]*)", tags)
    parts = entry[1].split("~") if entry else []
    triplets = [part.split("^") for part in (*parts[2:3], *parts[5:6])]
    codes = [(triplet[1], triplet[0]) for triplet in triplets if len(triplet) == 3 and all(triplet[:2])]
    return tuple(codes if codes and is_general(*codes[0]) else codes[:1])
