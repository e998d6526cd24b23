"""Where the voxels of an image lie in the network's grid, and the way there and back, a few slices at a time.

A volume of a hospital's scanner has 150 million voxels and a network several
classes: all of their probabilities on the image's grid never exist at once.
The geometry is that of MONAI's `Orientation` (to RAS), `Spacing` or `Resize`, and
`SpatialPad`; the tests hold it to them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import compute_shape_offset, zoom_affine
from monai.transforms import Orientation, Resize
from torch import Tensor

from iopfl.core.classes import find_largest
from iopfl.core.task import Task

_ELEMENTS = 1 << 23
"""Floats of a slab; one that fits the cache is faster than a larger one."""
_OPEN = 255
"""Of a voxel whose neighbors on the network's grid are of several classes."""
_MOST_OPEN = 0.2
"""Share of such voxels in a slab, beyond which all of it is interpolated: they take so much longer one by one."""
_SAME = 1e-3
"""Difference of two affines that MONAI takes for none."""
_NO_SHEAR = 1e-4
"""Voxels that shear may move a corner by without being resampled as such: NIfTI's affines are rounded."""


class Grid:
    """The grid of one image, and the network's.

    Args:
        shape: (X, Y, Z) of the image.
        affine: (4, 4), voxel index to RAS mm.
        task: says what the network's grid is.
    """

    def __init__(self, shape: Sequence[int], affine: Tensor | np.ndarray, task: Task) -> None:
        source = np.asarray(affine, dtype=np.float64)
        turn = _turn(source)  # columns: the image's axis that becomes each of RAS, and its sign
        self._axes = np.abs(turn).argmax(0).tolist()
        self._flipped = [axis for axis in range(3) if turn[:, axis].sum() < 0]
        turned = tuple(int(shape[axis]) for axis in self._axes)
        upright = source.copy()
        upright[:3, :3] = source[:3, :3] @ turn
        upright[:3, 3] += source[:3, :3] @ ((turn.sum(1) < 0) * (np.array(shape) - 1))
        matrix, inner = _place(turned, upright, task)
        fixed = (*task.size, *inner[task.spatial_dims :])
        pads = [max(0, wanted - edge) // 2 for wanted, edge in zip(fixed, inner, strict=True)]
        self.size = tuple(max(pair) for pair in zip(fixed, inner, strict=True))
        """Of the network's volume."""
        self._inner = tuple(slice(pad, pad + edge) for pad, edge in zip(pads, inner, strict=True))
        back = np.linalg.inv(matrix)
        back[:3, 3] += pads
        box = [(pad, pad + edge) for pad, edge in zip(pads, inner, strict=True)]
        smooth = [_smoothing(*edges) for edges in zip(turned, inner, strict=True)] if task.spacing is None else None
        self._there = _Way(matrix, inner, [(0, edge) for edge in turned], smooth)
        self._back = _Way(back, turned, box)

    def to_network(self, image: Tensor, padding: float | None = None) -> Tensor:
        """An image (C, X, Y, Z) on the network's grid: (C, *size) float32, zero beside it.

        With a value that is padding: NaN where most is padding; elsewhere nothing of it is mixed in.
        """
        turned = image.permute(0, *(axis + 1 for axis in self._axes))
        depth = turned.shape[3]
        prepared = torch.zeros(len(image), self.size[2], *self.size[:2]).permute(0, 2, 3, 1)
        inner = prepared[(slice(None), *self._inner)]
        for start, stop in self._there.slabs(len(image)):
            first, last = self._there.span(start, stop)
            begin = depth - last if 2 in self._flipped else first
            part = turned[..., begin : begin + last - first]
            part = part.flip([axis + 1 for axis in self._flipped]) if self._flipped else part
            part = part.contiguous()  # a picture's colors lie side by side, which is slow
            if padding is None:
                inner[..., start:stop] = self._there(part.float(), start, stop, first)
                continue
            image_here = (part != padding).all(0, keepdim=True)
            share = self._there(image_here.float(), start, stop, first)
            values = self._there(torch.where(image_here, part.float(), 0.0), start, stop, first) / share
            inner[..., start:stop] = values.masked_fill_(share < 0.5, math.nan)
        return prepared

    def to_mask(self, slabs: Iterable[Tensor], values: Sequence[int]) -> Tensor:
        """Bring class probabilities to the image's exact grid, and take the most probable class.

        Args:
            slabs: (K, X', Y', d) on the network's grid, one after the other along Z'.
            values: the values of the K classes in the mask, 0 to 255.

        Returns:
            (X, Y, Z) uint8; in memory, slices lie one after the other, as in most files.
        """
        lookup = np.array(values, dtype=np.uint8)
        shape = [self._back.shape[self._axes.index(axis)] for axis in range(3)]
        mask = torch.empty(shape[::-1], dtype=torch.uint8).permute(2, 1, 0)
        turned, start, depth = mask.permute(self._axes), 0, self._back.shape[2]
        for classes in self._to_image(slabs):
            stop = start + classes.shape[2]
            places = slice(depth - stop, depth - start) if 2 in self._flipped else slice(start, stop)
            turned[..., places] = torch.from_numpy(lookup.take(classes.numpy())).flip(self._flipped)
            start = stop
        return mask

    def _to_image(self, slabs: Iterable[Tensor]) -> Iterator[Tensor]:
        """Slabs of the network's grid, (K, X', Y', d), as classes (X, Y, d) of the image's, turned to RAS."""
        held, begin, start = None, 0, 0  # slices that are needed still, where they begin, and what comes next
        for slab in slabs:
            held = slab if held is None or not held.shape[3] else torch.cat([held, slab], dim=3)
            end = begin + held.shape[3]
            while (stop := self._back.reach(start, end, len(slab))) > start:
                yield self._back.find_classes(held, start, stop, begin)
                start = stop
            first = end if start == self._back.shape[2] else min(self._back.span(start, start + 1)[0], end)
            held, begin = held[..., first - begin :], first


@dataclass(frozen=True)
class _Taps:
    """Along one axis, what each output is a weighted sum of.

    Attributes:
        columns: (N, T) indices of inputs.
        weights: (N, T).
    """

    columns: Tensor
    weights: Tensor

    @property
    def is_nothing(self) -> bool:
        """Whether every output is the input of the same index."""
        return self.columns.shape[1] == 1 and bool((self.columns[:, 0] == torch.arange(len(self.columns))).all())

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """First input that the outputs `start` to `stop` need, and the one after the last."""
        columns = self.columns[start:stop]
        return int(columns.min()), int(columns.max()) + 1

    def agree(self, classes: Tensor, axis: int) -> Tensor:
        """Along an axis, the class that all inputs of an output are of; `_OPEN` where they differ."""
        first, *others = (classes.index_select(axis, column) for column in self.columns.T)
        for other in others:
            first.masked_fill_(first != other, _OPEN)
        return first

    def __call__(self, images: Tensor, axis: int, start: int, stop: int, begin: int) -> Tensor:
        """Outputs `start` to `stop` along an axis of (C, X, Y, Z), whose first input there has index `begin`."""
        columns, weights = self.columns[start:stop] - begin, self.weights[start:stop]
        shape = [-1 if other == axis else 1 for other in range(4)]
        parts = (images.index_select(axis, column) for column in columns.T)
        first = next(parts)
        if columns.shape[1] == 1:
            return first
        if columns.shape[1] == 2:  # their sum is 1
            return first.lerp_(next(parts), weights[:, 1].view(shape))
        total = first.mul_(weights[:, 0].view(shape))
        for weight, part in zip(weights.T[1:], parts, strict=True):
            total.addcmul_(part, weight.view(shape))
        return total


class _Way:
    """Resampling in one direction.

    Args:
        matrix: (4, 4), index of an output to index of an input.
        shape: the shape of the outputs.
        box: along each axis, the first input and the one after the last; beyond them, the nearest counts.
        taps: along each axis, instead of linear interpolation at the matrix's places.
    """

    def __init__(
        self,
        matrix: np.ndarray,
        shape: Sequence[int],
        box: Sequence[tuple[int, int]],
        taps: Sequence[_Taps] | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self._matrix, self._box = matrix, box
        moved = np.abs(matrix[:3, :3] - np.diag(np.diag(matrix[:3, :3]))) @ np.array(shape)
        self._taps = taps
        if taps is None and moved.max() < _NO_SHEAR:
            lines = zip(np.diag(matrix), matrix[:3, 3], shape, box, strict=False)
            self._taps = [_interpolate(*line) for line in lines]

    def slabs(self, channels: int) -> Iterator[tuple[int, int]]:
        """First slice of each slab along Z, and the one after its last."""
        step = self._step(channels)
        for start in range(0, self.shape[2], step):
            yield start, min(start + step, self.shape[2])

    def reach(self, start: int, end: int, channels: int) -> int:
        """How far a slab that begins at `start` can go by the input's slices before `end`: to `start` if nowhere."""
        stop = min(start + self._step(channels), self.shape[2])
        while stop > start and self.span(start, stop)[1] > end:
            stop -= 1
        return stop

    def _step(self, channels: int) -> int:
        return max(1, _ELEMENTS // (channels * self.shape[0] * self.shape[1]))

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """First slice of the input that outputs `start` to `stop` along Z need, and the one after the last."""
        if self._taps is not None:
            return self._taps[2].span(start, stop)
        corners = itertools.product((0, self.shape[0] - 1), (0, self.shape[1] - 1), (start, stop - 1))
        places = [float(self._matrix[2, :3] @ corner + self._matrix[2, 3]) for corner in corners]
        low, high = self._box[2]
        first = min(max(math.floor(min(places)), low), high - 1)
        return first, max(first + 1, min(math.floor(max(places)) + 2, high))

    def __call__(self, images: Tensor, start: int, stop: int, begin: int) -> Tensor:
        """Outputs (C, X, Y, stop - start) of inputs (C, X', Y', d), whose first slice has index `begin`."""
        if self._taps is None:
            return self._sample(images, start, stop, begin)
        sizes = [edge / max(1, high - low) for edge, (low, high) in zip(self.shape, self._box, strict=True)]
        for axis in sorted(range(3), key=lambda axis: sizes[axis]):  # what makes it smaller comes first
            taps = self._taps[axis]
            if axis == 2:
                first, last = taps.span(start, stop)
                images = images[..., first - begin : last - begin]
                images = images if taps.is_nothing else taps(images, 3, start, stop, first)
            elif not taps.is_nothing:
                images = taps(images, axis + 1, 0, self.shape[axis], 0)
        return images

    def find_classes(self, images: Tensor, start: int, stop: int, begin: int) -> Tensor:
        """The most probable class of outputs, (X, Y, stop - start) uint8, of probabilities (K, X', Y', d).

        Where all voxels around are of one class, so is what lies between them; the others are interpolated.
        """
        if self._taps is None or len(images) > _OPEN:
            return find_largest(self(images, start, stop, begin))
        first, last = self._taps[2].span(start, stop)
        held, lines = images[..., first - begin : last - begin], []
        for axis, taps in enumerate(self._taps):
            ours = slice(start, stop) if axis == 2 else slice(None)
            used, columns = (taps.columns[ours] - (first if axis == 2 else 0)).unique(return_inverse=True)
            if len(used) < held.shape[axis + 1]:
                held = held.index_select(axis + 1, used)
            lines.append(_Taps(columns, taps.weights[ours]))
        classes = find_largest(held)
        moved = [axis for axis, line in enumerate(lines) if not line.is_nothing]
        if not moved:
            return classes
        for axis in moved:
            classes = lines[axis].agree(classes, axis)
        unsure = classes == _OPEN
        if unsure.count_nonzero() > _MOST_OPEN * unsure.numel():
            return find_largest(self(images, start, stop, begin))
        places = unsure.nonzero().T
        sizes = [edge / max(1, high - low) for edge, (low, high) in zip(self.shape, self._box, strict=True)]
        moved.sort(key=lambda axis: sizes[axis])  # as above: the same to the last digit

        def interpolate(axes: Sequence[int], at: list[Tensor]) -> Tensor:
            if not axes:
                return held[:, at[0], at[1], at[2]]
            *others, axis = axes
            line, index = lines[axis], places[axis]
            parts = [interpolate(others, [*at[:axis], column[index], *at[axis + 1 :]]) for column in line.columns.T]
            return parts[0] if len(parts) == 1 else torch.lerp(parts[0], parts[1], line.weights[index, 1])

        classes[unsure] = find_largest(interpolate(moved, list(places)))
        return classes

    def _sample(self, images: Tensor, start: int, stop: int, begin: int) -> Tensor:
        """The same where the axes are not at right angles: a tilted gantry."""
        first, last = self.span(start, stop)
        images = images[..., first - begin : last - begin]
        places = []
        for axis, (low, high) in enumerate(self._box):
            ranges = (range(self.shape[0]), range(self.shape[1]), range(start, stop))
            steps = [torch.tensor(list(indices), dtype=torch.float64) for indices in ranges]
            row = [float(value) for value in self._matrix[axis]]
            place = row[0] * steps[0][:, None, None] + row[1] * steps[1][:, None] + row[2] * steps[2] + row[3]
            place = place.clamp_(low, high - 1) - (first if axis == 2 else 0)
            places.append(((2 * place + 1) / images.shape[axis + 1] - 1).float())
        grid = torch.stack(places[::-1], dim=-1)[None]
        return torch.nn.functional.grid_sample(images[None], grid, padding_mode="border", align_corners=False)[0]


def _turn(affine: np.ndarray) -> np.ndarray:
    """From an affine (4, 4) to RAS, its closest axes: a permutation with signs, (3, 3)."""
    voxel = MetaTensor(torch.zeros(1, 1, 1, 1), affine=torch.from_numpy(affine))
    upright = Orientation(axcodes="RAS", labels=None)(voxel).affine.numpy()
    return np.round(np.linalg.solve(affine[:3, :3], upright[:3, :3]))


def _place(shape: tuple[int, ...], affine: np.ndarray, task: Task) -> tuple[np.ndarray, tuple[int, ...]]:
    """Index in the network's volume, before it is padded, to index in the image turned to RAS; and that volume's size.

    Args:
        shape: the shape of the image turned to RAS.
        affine: its affine.
        task: says what the network's grid is.
    """
    in_plane = task.spatial_dims == 2
    if task.spacing is None:
        size = (*task.size, shape[2]) if in_plane else task.size
        factors = np.array(shape) / np.array(size)
        matrix = np.diag([*factors, 1.0])
        matrix[:3, 3] = (factors - 1) / 2  # corners of voxels lie on each other, not their centers
        return matrix, tuple(size)
    spacing = (*task.spacing, -1.0) if in_plane else task.spacing
    target = zoom_affine(affine, spacing, diagonal=False)
    size, offset = compute_shape_offset(shape, affine, target)
    target[:3, 3] = offset[:3]
    matrix = np.linalg.solve(affine, target)
    same = np.allclose(matrix, np.eye(4), atol=_SAME) or np.allclose(affine, target, atol=_SAME)
    if same and tuple(size) == tuple(shape):
        matrix = np.eye(4)
    return matrix, tuple(int(edge) for edge in size)


def _interpolate(step: float, origin: float, count: int, box: tuple[int, int]) -> _Taps:
    """Linear interpolation at `step * index + origin`, of `count` indices."""
    low, high = box
    places = (step * np.arange(count) + origin).clip(low, high - 1)
    near = np.round(places)
    if np.abs(places - near).max() < 1e-9:
        return _Taps(torch.from_numpy(near.astype(np.int64))[:, None], torch.ones(count, 1))
    below = np.floor(places)
    columns = np.stack([below, np.minimum(below + 1, high - 1)], axis=1).astype(np.int64)
    shares = torch.from_numpy(places - below).float()
    return _Taps(torch.from_numpy(columns), torch.stack([1 - shares, shares], dim=1))


def _smoothing(before: int, after: int) -> _Taps:
    """What MONAI's `Resize` with anti-aliasing does along one axis: it is linear, and each axis is by itself."""
    if before == after:
        return _interpolate(1.0, 0.0, after, (0, before))
    resize = Resize(spatial_size=(after,), mode="linear", anti_aliasing=True)
    rows = torch.as_tensor(resize(torch.eye(before))).T  # (after, before)
    used = rows != 0
    first = used.int().argmax(1)
    width = int((used.cumsum(1).argmax(1) - first).max()) + 1
    first = first.clamp(max=max(0, before - width))
    columns = first[:, None] + torch.arange(min(width, before))
    return _Taps(columns, rows.gather(1, columns))
