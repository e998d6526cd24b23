"""Whether a label lies on its image's voxels, and how it is brought there where its slices do but its grid does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from iopfl.base.errors import SeriesError
from iopfl.images.files import is_picture
from iopfl.images.places import find_nifti_stack, place_in_itk, source_of
from iopfl.images.straightening import Stack, straighten

_TURNED = 0.1
"""Voxels by which a step along an axis of a label may differ from one along an axis of the image."""
_SAME_PLACE = 0.5
"""Voxels by which a label may lie beside the image: its middle along each axis, its corners along the longest edge."""


def refuse_grid(path: Path, expected: tuple[int, ...], given: Sequence[int]) -> NoReturn:
    """Raise what to do about a label of another grid than its image's."""
    raise SeriesError(
        f"label {path.name}: expected the image's grid {expected}, given {tuple(given)}; "
        "export the label on the image it was drawn on"
    )


def bring_to_grid(label: MetaTensor, image: MetaTensor, *, has_place: bool) -> tuple[MetaTensor | None, int]:
    """A label whose voxels are the image's, but on another grid or in another order, on the image's own.

    Args:
        label: (1, X', Y', Z').
        image: (C, X, Y, Z).
        has_place: whether the label's file says where it lies; a picture does not.

    Returns:
        (1, X, Y, Z), and how many voxels were drawn beside the slices; None of a label that is as it should be, or of
        other voxels.
    """
    if taken := take_slices(label, image):
        return taken
    if not has_place:
        return None, 0
    laid = lay_slices(label, image) if label.shape[1:] != image.shape[1:] else None
    return turn_axes(label, image) if laid is None else laid, 0


def turn_axes(label: MetaTensor, image: MetaTensor) -> MetaTensor | None:
    """A label whose axes run otherwise than the image's, as many programs save it (RAS, LPS), in the image's order.

    Args:
        label: (1, X', Y', Z').
        image: (C, X, Y, Z).

    Returns:
        (1, X, Y, Z), or None: its axes run alike, or its voxels are not the image's.
    """
    own, size = label.affine.double().numpy(), tuple(image.shape[1:])
    if is_picture(source_of(image)):
        return None
    turns = []
    for place_of in (_place_of, place_in_itk):
        place = place_of(image)
        turn = np.rint(between := np.linalg.solve(place, own)[:3, :3])
        if np.array_equal(turn, np.eye(3)):
            return None
        if np.array_equal(turn @ turn.T, np.eye(3)) and np.abs(between - turn).max() <= _TURNED:
            turns.append((place, turn))
    for place, turn in turns:
        axes = [int(axis) for axis in np.abs(turn).argmax(axis=1)]
        if tuple(label.shape[1 + axis] for axis in axes) != size:
            continue
        back = np.eye(4)  # from an index there to the one in the file
        back[:3, :3] = turn.T
        back[:3, 3] = np.maximum(-turn.T, 0) @ (np.array(size) - 1)
        if _is_same(size, own @ back, place):
            flipped = [1 + axis for axis in range(3) if turn[axis, axes[axis]] < 0]
            voxels = label.as_tensor().permute(0, *(1 + axis for axis in axes)).flip(flipped)
            return MetaTensor(voxels.contiguous(), meta={**label.meta, "affine": torch.from_numpy(own @ back)})
    return None


def _place_of(image: MetaTensor) -> np.ndarray:
    return image.affine.double().numpy()


def lay_slices(label: MetaTensor, image: MetaTensor) -> MetaTensor | None:
    """A label on slices that shift sideways, as a PACS has those of a tilted gantry, on the image's straight grid.

    Args:
        label: (1, X', Y', Z), with the affine of the slices.
        image: (C, X, Y, Z), whose grid holds exactly these slices.

    Returns:
        (1, X, Y, Z), or None: it is none of that kind.
    """
    stack = straighten(label.shape[1:], label.affine.double().numpy())
    if stack.straight_shape != tuple(image.shape[1:]):
        return None
    if not _is_same(image.shape[1:], stack.straight_affine, image.affine.numpy()):
        return None
    laid = torch.from_numpy(np.ascontiguousarray(stack.lay(label.as_tensor()[0].numpy())))[None]
    return MetaTensor(laid, affine=torch.from_numpy(stack.straight_affine))


def take_slices(label: MetaTensor, image: MetaTensor) -> tuple[MetaTensor, int] | None:
    """A label on the straight grid that an image is handed out on, brought back onto the image's own slices.

    Args:
        label: (1, X', Y', Z), with the affine of the straight grid.
        image: (C, X, Y, Z), whose file leans.

    Returns:
        (1, X, Y, Z), and how many voxels were drawn beside the slices; or None: it is none of that kind.
    """
    stack = find_nifti_stack(image)
    if stack is None or tuple(label.shape[1:]) != stack.straight_shape:
        return None
    if not _is_same(stack.straight_shape, label.affine.double().numpy(), stack.straight_affine):
        return None
    values = label.as_tensor()[0].numpy()
    kept = np.ascontiguousarray(stack.take(values))
    beside = np.count_nonzero(values) - np.count_nonzero(kept)
    return MetaTensor(torch.from_numpy(kept)[None], meta={**label.meta, "affine": image.affine}), beside


def find_most(image: Tensor) -> int:
    """Voxels of a label of an image at most: on its own grid, or on the one that it is handed out on."""
    stack = find_nifti_stack(image) if isinstance(image, MetaTensor) else None
    return max(math.prod(image.shape[1:]), math.prod(stack.straight_shape) if stack else 0)


def is_straight(affine: np.ndarray, stack: Stack) -> bool:
    """Whether the axes of a label, (4, 4), are those of the straight grid rather than of the slices."""
    apart = [np.linalg.norm(affine[:3, :3] - place[:3, :3]) for place in (stack.straight_affine, stack.affine)]
    return bool(apart[0] <= apart[1])


def check_same_place(path: Path, label: MetaTensor, image: MetaTensor) -> None:
    """Check that the voxels of a label, (C, X, Y, Z), lie where the image's do, for nibabel or for ITK."""
    own, size, place = label.affine.numpy(), label.shape[1:], image.affine.numpy()
    if _is_same(size, own, place) or _is_same(size, own, in_itk := place_in_itk(image)):
        return
    apart = min(_find_distance(size, own, place), _find_distance(size, own, in_itk))
    raise SeriesError(
        f"label {path.name}: expected the image's position and orientation, but a corner of it lies elsewhere in "
        f"the patient, {apart:.1f} mm away; export the label on the image it was drawn on"
    )


def _is_same(size: Sequence[int], own: np.ndarray, place: np.ndarray) -> bool:
    """Whether a grid lies where another does, but for the precision of headers."""
    edge = float(np.linalg.norm(place[:3, :3], axis=0).max())
    middle = np.append((np.array(size) - 1) / 2, 1.0)
    beside = np.linalg.solve(np.asarray(place, float), np.asarray(own, float) @ middle) - middle
    return _find_distance(size, own, place) <= _SAME_PLACE * edge and bool(np.abs(beside).max() <= _SAME_PLACE)


def _find_distance(size: Sequence[int], one: np.ndarray, other: np.ndarray) -> float:
    """How far, at most, the corners of a grid lie apart by two affines, in mm."""
    ends = np.stack(np.meshgrid(*[(0, edge - 1) for edge in size], indexing="ij")).reshape(3, 8)
    moved = (np.asarray(one, float) - np.asarray(other, float)) @ np.vstack([ends, np.ones(8)])
    return float(np.linalg.norm(moved[:3], axis=0).max())
