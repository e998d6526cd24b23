"""Pictures of results: a slice with its mask.

Pure functions. A volume is turned upright by its affine and shown the
radiological way: axial, anterior up, the patient's right on the left. A
picture is shown as it was taken, in its own colors.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import contourpy
import matplotlib
import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from monai.data import MetaTensor
from PIL import Image, ImageDraw
from torch import Tensor

from iopfl.base.errors import ConfigError
from iopfl.core.colors import label_colors
from iopfl.core.task import Task
from iopfl.core.transforms import is_picture

REFERENCE_COLOR = "#FFFFFF"

_LONGEST_SIDE = 960
"""Of an overlay, in pixels."""
_WINDOW = (1.0, 99.5)
"""Percentiles of a volume that become black and white."""
_OVERSAMPLING = 2
"""Lines are drawn this much larger, then reduced: that makes them smooth."""
_THIN = 12.0
"""A structure narrower than this many pixels of the overlay gets a finer line."""
_HEAT, _HOTTEST = matplotlib.colormaps["YlOrRd"], 50.0
"""Colors of the experts' disagreement, and the percent that has the last of them."""
_DASH, _GAP = 9.0, 6.0
"""Of the reference's contour, in pixels of the overlay."""


def count_slices(image: Tensor) -> int:
    """Axial slices of an image (C, X, Y, Z) as `overlay` counts them; 1 for a picture."""
    return _upright(image, image)[0].shape[-1]


def find_best_slice(image: Tensor, mask: Tensor) -> int:
    """The slice with most foreground, or the middle one if there is none.

    Args:
        image: (C, X, Y, Z); its affine says which way is up.
        mask: label values, (X, Y, Z).

    >>> mask = torch.zeros(4, 4, 5)
    >>> mask[1:3, 1:3, 3] = 1
    >>> find_best_slice(torch.rand(1, 4, 4, 5), mask)
    3
    """
    foreground = (_upright(mask[None], image)[0][0] > 0).sum((0, 1))  # (Z,)
    return int(foreground.argmax()) if foreground.any() else len(foreground) // 2


def overlay(
    image: Tensor,
    mask: Tensor | None,
    task: Task,
    *,
    slice_index: int | None = None,
    reference: Tensor | None = None,
    disagreement: Tensor | None = None,
    spacing: Sequence[float] | None = None,
) -> Image.Image:
    """Draw one slice with the contours of its labels.

    Args:
        image: (C, X, Y, Z). A `MetaTensor` is turned upright by its affine; a plain volume is taken to be RAS.
        mask: label values, (X, Y, Z); None = the image alone.
        task: names the labels.
        slice_index: axial slice, counted from the feet; None = the one with most foreground.
        reference: label values of a clinician's mask, (X, Y, Z); dashed.
        disagreement: percent of the experts, (X, Y, Z), shown as heat; the labels are outlined alone then.
        spacing: the spacing of X, Y and Z in mm; None = the affine's, or square pixels.

    Raises:
        ConfigError: there is no such slice, or a mask of another shape.
    """
    for name, values in (("mask", mask), ("reference", reference), ("disagreement", disagreement)):
        if values is not None and values.shape != image.shape[1:]:
            raise ConfigError(
                f"{name}: expected the image's grid {tuple(image.shape[1:])}, given {tuple(values.shape)}"
            )
    upright, edges = _upright(image, image, spacing)
    shown = reference if mask is None else mask
    if slice_index is None:
        slice_index = upright.shape[-1] // 2 if shown is None else find_best_slice(image, shown)
    if not 0 <= slice_index < upright.shape[-1]:
        raise ConfigError(f"slice {slice_index}: the image has slices 0 to {upright.shape[-1] - 1}")

    drawn = _draw_slice(upright, slice_index, _is_photograph(image))
    width, height = drawn.width * edges[0], drawn.height * edges[1]
    scale = _LONGEST_SIDE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    drawn = drawn.resize(size, Image.Resampling.BICUBIC if scale * min(edges) > 1 else Image.Resampling.LANCZOS)
    if disagreement is not None:
        _draw_heat(drawn, _upright(disagreement[None], image)[0][0, ..., slice_index].T)
    if mask is not None:
        plane = _upright(mask[None], image)[0][0, ..., slice_index].T  # (Y, X)
        for color, value in zip(label_colors(task).values(), task.labels.values(), strict=True):
            if disagreement is None:
                _draw_label(drawn, plane == value, color)
            else:
                _draw_contour(drawn, plane == value, color)
    if reference is not None:
        plane = _upright(reference[None], image)[0][0, ..., slice_index].T
        for value in task.labels.values():
            _draw_contour(drawn, plane == value, REFERENCE_COLOR, is_dashed=True)
    return drawn


def figure_to_image(figure: Figure) -> Image.Image:
    """A matplotlib figure as a picture, without its global state: safe in any thread."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"savefig.facecolor": "white"}):
        figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def to_png(image: Image.Image) -> bytes:
    """Encode a picture without loss."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def to_jpeg(image: Image.Image) -> bytes:
    """Encode a picture for a page that holds many."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def _is_photograph(image: Tensor) -> bool:
    """Whether an image came from a plain picture file: no spacing, no orientation."""
    name = str(image.meta.get("filename_or_obj", "")) if isinstance(image, MetaTensor) else ""
    return is_picture(Path(name)) if name else image.shape[-1] == 1


def _upright(values: Tensor, image: Tensor, spacing: Sequence[float] | None = None) -> tuple[np.ndarray, list[float]]:
    """Values on an image's grid, (C, X, Y, Z), with columns to the left of the patient and rows to the back.

    Returns:
        The values, seen and not copied, and the edges of a pixel along columns and rows, in mm or as a ratio.
    """
    values = values.as_tensor() if isinstance(values, MetaTensor) else values
    if _is_photograph(image):
        edges = [1.0, 1.0] if spacing is None else list(spacing[:2])
        return values.detach().cpu().numpy(), edges
    affine = image.affine.numpy() if isinstance(image, MetaTensor) else np.eye(4)
    sizes = nib.affines.voxel_sizes(affine) if spacing is None else np.asarray(spacing, dtype=float)
    transform = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt("LPS")
    )
    array = np.moveaxis(values.detach().cpu().numpy(), 0, -1)  # (X, Y, Z, C)
    turned = nib.orientations.apply_orientation(array, transform)
    edges = [float(sizes[list(transform[:, 0]).index(axis)]) for axis in range(2)]
    return np.moveaxis(turned, -1, 0), edges


def _draw_slice(upright: np.ndarray, slice_index: int, is_photograph: bool) -> Image.Image:
    """A slice in 8 bits: a picture as stored, a volume windowed by its own percentiles."""
    plane = upright[..., slice_index].transpose(2, 1, 0)  # (Y, X, C)
    top = float(upright.max())
    if is_photograph and top <= 255:
        black, white = 0.0, 255.0 if top > 1 else 1.0
    else:
        black, white = np.percentile(upright[..., :: max(1, upright.shape[-1] // 32)], _WINDOW)
    scaled = np.clip((plane - black) / max(white - black, 1e-6), 0, 1)
    scaled = scaled.repeat(3, axis=-1) if scaled.shape[-1] == 1 else scaled[..., :3]
    return Image.fromarray((255 * scaled).round().astype(np.uint8), mode="RGB")


def _draw_heat(drawn: Image.Image, percent: np.ndarray) -> None:
    """Lay disagreement (Y, X) over a slice, from yellow to dark red, which is half of the experts."""
    share = np.clip(percent.astype(np.float32) / _HOTTEST, 0, 1)
    colors = Image.fromarray((_HEAT(0.25 + 0.65 * share)[..., :3] * 255).astype(np.uint8))
    alpha = Image.fromarray(np.where(share > 0, 110 + 120 * share, 0).astype(np.uint8))
    how = Image.Resampling.BILINEAR
    drawn.paste(colors.resize(drawn.size, Image.Resampling.NEAREST), (0, 0), alpha.resize(drawn.size, how))


def _draw_label(drawn: Image.Image, mask: np.ndarray, color: str) -> None:
    """Fill lightly and outline a mask (Y, X)."""
    if not mask.any():
        return
    is_thin = _width_of(mask) * drawn.width / mask.shape[1] < _THIN
    alpha = Image.fromarray((mask * (150 if is_thin else 64)).astype(np.uint8))
    drawn.paste(color, (0, 0), alpha.resize(drawn.size, Image.Resampling.BOX))
    _draw_contour(drawn, mask, color, is_thin=is_thin)


def _draw_contour(
    drawn: Image.Image, mask: np.ndarray, color: str, *, is_thin: bool | None = None, is_dashed: bool = False
) -> None:
    """Outline a mask (Y, X), with a dark rim that keeps the line visible on a bright image."""
    if not mask.any():
        return
    if is_thin is None:
        is_thin = _width_of(mask) * drawn.width / mask.shape[1] < _THIN
    scale = _OVERSAMPLING
    lines = [_scale(line, mask, drawn, scale) for line in _trace(mask)]
    if is_dashed:
        lines = [dash for line in lines for dash in _cut(line, _DASH * scale, _GAP * scale)]
    for ink, width, opacity in (("#000000", 4.0, 0.55), (color, 2.0, 1.0)):
        if is_thin and ink == "#000000":
            continue
        layer = Image.new("L", (drawn.width * scale, drawn.height * scale))
        pen = ImageDraw.Draw(layer)
        for line in lines:
            points = [tuple(point) for point in line]
            pen.line(points, fill=round(255 * opacity), width=round(scale * (width / 2 if is_thin else width)))
        drawn.paste(ink, (0, 0), layer.reduce(scale))


def _width_of(mask: np.ndarray) -> float:
    """Mean width of what is in a mask, in its pixels: twice the area by the length of the rim."""
    rim = np.abs(np.diff(mask.astype(np.int8), axis=0)).sum() + np.abs(np.diff(mask.astype(np.int8), axis=1)).sum()
    return 2 * float(mask.sum()) / max(1.0, float(rim))


def _trace(mask: np.ndarray) -> list[np.ndarray]:
    """Closed contours of a mask (Y, X), as (points, 2) of column and row."""
    padded = np.pad(mask.astype(np.float32), 1)
    return [np.asarray(line) - 1 for line in contourpy.contour_generator(z=padded).lines(0.5)]


def _scale(line: np.ndarray, mask: np.ndarray, drawn: Image.Image, oversampling: int) -> np.ndarray:
    """From pixel indices of a mask to those of the enlarged picture."""
    factor = np.array([drawn.width / mask.shape[1], drawn.height / mask.shape[0]]) * oversampling
    return (line + 0.5) * factor


def _cut(line: np.ndarray, dash: float, gap: float) -> Iterator[np.ndarray]:
    """Cut a line into dashes of a length, a gap after each."""
    steps = np.hypot(*np.diff(line, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    for start in np.arange(0, along[-1], dash + gap):
        end = min(start + dash, along[-1])
        inner = along[(along > start) & (along < end)]
        positions = np.concatenate([[start], inner, [end]])
        yield np.stack([np.interp(positions, along, line[:, axis]) for axis in range(2)], axis=1)
