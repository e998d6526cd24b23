"""From a file to a network's input and back: the only preprocessing there is.

Training, inference, adaptation, the federation and the benchmark all use it.
Every image is a volume here, (C, X, Y, Z): a picture has Z = 1. A 2D network
sees a volume as N instances, its slices along Z, each with its neighbors as
channels (2.5D); a 3D network sees one instance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import dense_patch_slices
from torch import Tensor

from iopfl.base.errors import SeriesError
from iopfl.core.color_masks import check_palette, find_gray, find_values
from iopfl.core.grids import Grid
from iopfl.core.label_names import has_names, merge, name_values
from iopfl.core.memory import check_room
from iopfl.core.task import Task
from iopfl.images.exif import find_orientation, to_stored, to_upright, turn_label
from iopfl.images.files import find_notes, is_picture, read_voxels
from iopfl.images.headers import ImageHeader, read_header
from iopfl.images.label_grids import bring_to_grid, check_same_place, find_most, is_straight, refuse_grid
from iopfl.images.label_tables import check_named, read_label_table
from iopfl.images.names import find_suffix
from iopfl.images.places import find_stack, place_in_itk, source_of
from iopfl.images.segment_files import is_segmentation, place_segments, read_segmentation
from iopfl.images.straightening import find_plane

_MAX_LAYERS = 64
_PERCENTILES = (0.5, 99.5)  # beyond which intensities are cut off
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"


def read_image(path: Path, task: Task) -> MetaTensor:
    """Read an image on its own grid.

    A gray picture given to a color task is repeated into three channels, a
    color one given to a gray task becomes its luminance; an alpha channel is dropped.

    Returns:
        (C, X, Y, Z) float32 with the source's affine (mm, RAS; identity for a picture).

    Raises:
        SeriesError: the file cannot be read, is no image for this task, or would take more memory than there is for
            an answer (`memory`).
    """
    image = read_voxels(path, check=lambda header: check_room(path.name, header.shape, task))
    if image.shape[0] in (2, 4) and is_picture(path):
        image = image[:-1]  # alpha
    if image.shape[0] == 1 and task.channels == 3 and is_picture(path):
        image = image.repeat(3, 1, 1, 1)
    elif image.shape[0] == 3 and task.channels == 1 and is_picture(path):
        image = (image * torch.tensor(_LUMINANCE).view(3, 1, 1, 1)).sum(0, keepdim=True)
    if image.shape[0] != task.channels:
        raise SeriesError(
            f"{path.name}: task {task.name} expects {task.channels} channel(s), the image has {image.shape[0]}"
        )
    if task.spatial_dims == 3 and min(image.shape[1:]) < 2:
        raise SeriesError(f"{path.name}: task {task.name} expects a volume, the image is one slice")
    lying = find_plane(image.shape[1:], image.affine.numpy())
    if task.spatial_dims == 2 and lying:
        raise SeriesError(
            f"{path.name}: task {task.name} sees axial slices, the image is one {lying} slice; give an axial one, or "
            "the whole volume"
        )
    if not np.isfinite([(values := _flatten(image.as_tensor())).min(), values.max()]).all():  # NaN is both
        raise SeriesError(f"{path.name}: the image holds NaN or infinity; expected finite intensities")
    padding = find_notes(image).padding
    if padding is not None and bool((image.as_tensor() == padding).all()):
        raise SeriesError(f"{path.name}: expected an image, but all of it is padding, which is no image")
    check_room(path.name, image.shape[1:], task, image.affine.numpy())
    return image


class LabelFile(NamedTuple):
    """A label read for a task.

    Attributes:
        classes: (1, X, Y, Z) class indices 0 .. K-1, as float32 for the transforms.
        is_as_stored: whether the file itself holds the task's values on the image's grid.
        beside: voxels that were drawn beside the slices of an image that leans, and are left out.
    """

    classes: MetaTensor
    is_as_stored: bool
    beside: int = 0


def read_label(path: Path, task: Task, *, like: Tensor) -> MetaTensor:
    """Read a label and map it to class indices: `open_label` of what comes without names.

    Returns:
        (1, X, Y, Z) class indices 0 .. K-1, as float32 for the transforms.
    """
    return open_label(path, task, like=like).classes


def open_label(path: Path, task: Task, *, like: Tensor, said: Any = None) -> LabelFile:
    """Read a label and map it to class indices: by the names in its file, by those beside it, else by its values.

    Args:
        path: label file.
        task: says which labels there are.
        like: the image it belongs to, (C, X, Y, Z).
        said: a client's `label_info`, where the label came with one.

    Raises:
        SeriesError: unreadable, of another shape than the image, or with names or values the task does not have.
    """
    shape = tuple(like.shape[1:])
    if is_segmentation(path):
        return _open_segmentation(path, task, like)

    def check(header: ImageHeader) -> None:
        if math.prod(header.shape) > find_most(like):
            refuse_grid(path, shape, header.shape)

    label = read_voxels(path, colors=False, check=check)
    is_color = False
    if is_picture(path) and 1 <= label.shape[0] <= 4:
        label, is_color = _read_colors(path, label, task, is_named=has_names(said))
    if isinstance(like, MetaTensor) and not is_picture(path) and is_picture(source_of(like)):
        check_same_place(path, label, like)
    label = turn_label(path, label, like, is_volume=not is_picture(path))
    laid, beside = None, 0
    if (count := label.shape[0]) != 1:
        raise SeriesError(f"label {path.name}: expected one value in a voxel, given {count}; export one map of labels")
    if isinstance(like, MetaTensor):
        laid, beside = bring_to_grid(label, like, has_place=not is_picture(path))
        label = label if laid is None else laid
    if label.shape[1:] != shape:
        refuse_grid(path, shape, label.shape[1:])
    values = _find_values(label.as_tensor())
    classes: MetaTensor = torch.zeros_like(label)
    table = read_label_table(path)
    if (table or has_names(said)) and any(values) and not is_color:
        shown = [value for value in values if value]
        names = check_named(table, shown, path.name) if table else name_values(said, shown, task, path.name)
        drawn = [(names[int(value)], label[0].as_tensor() == value) for value in values if value]
        classes[0] = merge(drawn, task, path.name).to(classes.dtype)
        is_as_stored = bool((torch.tensor(task.label_values)[classes.as_tensor().long()] == label.as_tensor()).all())
    else:
        _fill_by_values(classes, label, values, task, path)
        is_as_stored = not is_color
    if isinstance(like, MetaTensor):
        if not is_picture(path) and not is_picture(source_of(like)):
            check_same_place(path, classes, like)
        classes.affine = like.affine  # headers differ in the last digits
    return LabelFile(classes, is_as_stored and laid is None, beside)


def _read_colors(path: Path, label: MetaTensor, task: Task, *, is_named: bool) -> tuple[MetaTensor, bool]:
    """A picture's label values (1, X, Y, Z), and whether they were told by color.

    Indices of a palette are values if they are the task's, unless a color other than black is 0 and black is not.
    """
    if find_suffix(path.name) in (".jpg", ".jpeg"):
        raise SeriesError(f"label {path.name}: JPEG changes the values of a label; save it as PNG")
    colors = label.as_tensor()
    if len(colors) == 1 and read_header(path).channels > 1:  # a palette
        colors = read_voxels(path).as_tensor()
        is_swapped = not bool((label.as_tensor()[0] == 0)[(colors == 0).all(0)].all())
        fits = set(_find_values(label.as_tensor())) <= set(task.label_values)
        if not is_swapped and (fits or is_named):
            if not is_named:
                check_palette(label.as_tensor(), colors, task, path.name)
            return label, False
    gray = find_gray(colors)
    values = find_values(colors, task, path.name) if gray is None else gray
    return MetaTensor(values, meta=label.meta), gray is None


def _open_segmentation(path: Path, task: Task, like: Tensor) -> LabelFile:
    """Read a segmentation of 3D Slicer, by the names in its header."""
    about = {"affine": getattr(like, "affine", torch.eye(4)), "filename_or_obj": str(path)}
    orientation = find_orientation(like)
    like = to_stored(like, orientation)  # as Slicer shows it
    shape = tuple(like.shape[1:])
    header = read_header(path)
    if header.voxels > find_most(like) or header.channels > _MAX_LAYERS:
        refuse_grid(path, shape, (header.channels, *header.shape) if header.channels > 1 else header.shape)
    found = read_segmentation(path)
    affine = place_in_itk(like) if isinstance(like, MetaTensor) else found.affine  # where Slicer shows the image
    stack, beside = find_stack(source_of(like)) if isinstance(like, MetaTensor) else None, 0
    if stack is not None and is_straight(found.affine, stack):
        drawn = place_segments(path, found, torch.empty(1).expand(1, *stack.straight_shape), stack.straight_affine)
        beside = sum(int(voxels.sum()) for voxels in drawn.values())
        drawn = {name: torch.from_numpy(stack.take(voxels.numpy())) for name, voxels in drawn.items()}
        beside -= sum(int(voxels.sum()) for voxels in drawn.values())
    else:
        drawn = place_segments(path, found, like, affine)
    codes = {segment.name: segment.codes for segment in found.segments}
    classes = merge(list(drawn.items()), task, path.name, codes) if drawn else torch.zeros(shape, dtype=torch.uint8)
    values = torch.tensor(task.label_values)[classes.long()].numpy()
    is_as_stored = stack is None and found.layers.shape == (1, *shape) and bool((values == found.layers[0]).all())
    return LabelFile(MetaTensor(to_upright(classes[None], orientation).float(), meta=about), is_as_stored, beside)


def _fill_by_values(classes: Tensor, label: Tensor, values: Sequence[float], task: Task, path: Path) -> None:
    if not set(values) <= set(task.label_values):
        raise SeriesError(
            f"label {path.name}: task {task.name} has values {sorted(task.label_values)}, "
            f"the label holds {[round(value, 6) for value in values][:8]}; map them, or give a task with these labels"
        )
    for index, value in enumerate(task.label_values):
        classes[label == value] = index


def _find_values(label: Tensor) -> list[float]:
    """The values in a label, in order; bytes are counted, as to sort a large volume takes many seconds."""
    in_bytes = label.to(torch.uint8)
    if torch.equal(in_bytes.to(label.dtype), label):
        return torch.bincount(in_bytes.flatten(), minlength=256).nonzero().flatten().float().tolist()
    return label.unique().tolist()


class Preprocessing:
    """A task's way from the source grid to the network's grid, and back.

    >>> from iopfl.core.task import read_task
    >>> to_network = Preprocessing(read_task("vessel"))
    >>> image = MetaTensor(torch.rand(3, 300, 200, 1), affine=torch.eye(4))
    >>> tuple(to_network(image).shape)
    (3, 256, 256, 1)
    >>> tuple(to_network.mask([torch.rand(2, 256, 256, 1)], like=image).shape)
    (300, 200, 1)
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, image: MetaTensor) -> Tensor:
        """Source grid (C, X, Y, Z) to network grid (C, X', Y', Z'), normalized over the whole series."""
        return self.prepare(image)[0]

    def prepare(self, image: MetaTensor) -> tuple[Tensor, Tensor | None]:
        """The same, and where it is padding, which counts for no statistics and is as dark as the darkest of the image.

        Returns:
            (C, X', Y', Z') float32; and (X', Y', Z') bool, or None where nothing is padding.

        Raises:
            SeriesError: too little is left beside the padding.
        """
        value = find_notes(image).padding
        prepared = self._grid(image).to_network(image.as_tensor(), value)
        if value is None:
            _normalize(prepared, self.task.intensity)
            return prepared, None
        padding = prepared.isnan().any(0)
        if padding.all():
            raise SeriesError("expected an image, but nearly all of it is padding, which is no image")
        inside = prepared[:, ~padding]
        _normalize(inside, self.task.intensity)
        prepared[:, ~padding] = inside
        for channel, values in zip(prepared, inside, strict=True):
            channel[padding] = values.min()
        return prepared, padding if padding.any() else None

    def label(self, classes: MetaTensor) -> Tensor:
        """Class indices (1, X, Y, Z) to shares of each class on the network's grid: (K, X', Y', Z').

        Shares rather than the nearest index: a vessel thinner than a pixel of
        the network keeps its weight (at 256 pixels the nearest index brings
        back 0.59-0.77 of the vessels' Dice, shares 0.82-0.94).
        """
        grid, values = self._grid(classes), classes.as_tensor()
        return torch.cat([grid.to_network(values == index) for index in range(self.task.num_classes)])

    def mask(self, slabs: Iterable[Tensor], *, like: MetaTensor) -> Tensor:
        """Class probabilities as a mask on the source's exact grid.

        Args:
            slabs: (K, X', Y', d) on the network's grid, one after the other along Z'; one is enough.
            like: the image as it was read, (C, X, Y, Z).

        Returns:
            (X, Y, Z) uint8, the task's label values of the most probable class; background where it is padding.
        """
        mask, padding = self._grid(like).to_mask(slabs, self.task.label_values), find_notes(like).padding
        if padding is not None:
            for index in range(mask.shape[2]):  # one slice after the other: little memory
                mask[..., index][like.as_tensor()[0, ..., index] == padding] = self.task.label_values[0]
        return mask

    def _grid(self, image: MetaTensor) -> Grid:
        return Grid(image.shape[1:], image.affine, self.task)


def count_instances(volume: Tensor, task: Task) -> int:
    """N of `to_instances`: the slices (C, X, Y, Z) of a 2D task, 1 of a 3D one."""
    return volume.shape[3] if task.spatial_dims == 2 else 1


def to_instances(volume: Tensor, task: Task, positions: Tensor | None = None) -> Tensor:
    """A prepared volume as what the network takes.

    Args:
        volume: (C, X, Y, Z).
        task: 2D: slices along Z with their neighbors as channels, repeated at the ends; 3D: the volume.
        positions: (N,), which slices of a 2D task; None = all.

    Returns:
        (N, in_channels, *S): N slices of a 2D task, 1 volume of a 3D task.
    """
    volume = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    if task.spatial_dims == 3:
        return volume[None]
    depth, reach = volume.shape[-1], task.slices // 2
    positions = torch.arange(depth) if positions is None else positions
    neighbors = (positions[:, None] + torch.arange(-reach, reach + 1)).clamp(0, depth - 1)  # (N, slices)
    used, places = neighbors.unique(return_inverse=True)
    once = torch.stack([volume[..., index] for index in used.tolist()])  # slices lie far apart in memory: read once
    return once[places].flatten(1, 2)  # (N, slices * C, X, Y)


def to_windows(instances: Tensor, task: Task) -> Tensor:
    """Instances (N, C, *S) as windows of the task's size side by side, (M, C, *size); the last ones overlap."""
    windows = dense_patch_slices(tuple(instances.shape[2:]), task.size, task.size)
    return torch.cat([instances[(slice(None), slice(None), *window)] for window in windows])


def from_instances(outputs: Tensor, task: Task) -> Tensor:
    """Outputs of instances as a volume: (N, K, *S) to (K, X, Y, Z)."""
    return outputs[0] if task.spatial_dims == 3 else outputs.permute(1, 2, 3, 0)


def _flatten(volume: Tensor) -> np.ndarray:
    """All values in the order they have in memory: any other takes many times as long."""
    return volume.numpy().ravel(order="K")


def _normalize(volume: Tensor, intensity: str) -> None:
    """Normalize (C, ...) in its place: a volume is large."""
    if intensity == "percentile":
        low, high = np.percentile(_flatten(volume), _PERCENTILES).astype(np.float32).tolist()
        volume.sub_(low).clamp_(0, high - low)
    for channel in volume:
        deviation, mean = torch.std_mean(channel, correction=0)
        channel.sub_(mean).div_(deviation if deviation > 0 else 1)
