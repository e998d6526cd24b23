"""Masks drawn in color: which label each color is, or a refusal that says what was found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from iopfl.base.errors import SeriesError
from iopfl.core.colors import label_colors
from iopfl.core.task import Task

_SHOWN = 6


def find_gray(mask: Tensor) -> Tensor | None:
    """The values of a mask whose channels are all the same, apart from an opacity that is too: (1, X, Y, Z), or None.

    Args:
        mask: (C, X, Y, Z), C of 1 to 4: gray, gray with alpha, RGB, RGBA.
    """
    colors, alpha = _split(mask)
    return colors[:1] if alpha is None and bool((colors == colors[:1]).all()) else None


def find_values(mask: Tensor, task: Task, file: str) -> Tensor:
    """The task's values in a mask that is not plainly gray.

    Black and what is transparent is background. The rest is told by the one channel that holds the task's values and
    nothing else; by the task's own colors, as the server shows them; or, where there is one color and one label, it
    is that.

    Args:
        mask: (C, X, Y, Z), C of 1 to 4: gray, gray with alpha, RGB, RGBA.
        task: has the labels.
        file: for messages.

    Returns:
        (1, X, Y, Z).

    Raises:
        SeriesError: it cannot be told which color is which label.
    """
    colors, alpha = _split(mask)
    if alpha is not None and bool((colors == colors[:, :1, :1, :1]).all()):
        colors, alpha = alpha[None], None  # drawn in opacity alone
    if alpha is not None:
        colors = torch.where(alpha > 0, colors, 0)
        if alpha.unique().count_nonzero() > 1:
            raise SeriesError(f"label {file}: drawn half transparent; draw with full opacity and without soft edges")
    used = colors[colors.flatten(1).any(1)]
    if len(used) == 1 and set(used.unique().tolist()) <= set(task.label_values):
        return used
    found = colors.flatten(1).unique(dim=1).T
    found = found[found.any(1)]
    known = _known_colors(task, len(colors))
    if len(found) == 1 and len(task.labels) == 1:
        known = {tuple(found[0].tolist()): task.label_values[1]}
    values = torch.zeros_like(colors[:1])
    for color in found:
        value = known.get(tuple(color.tolist()))
        if value is None:
            raise SeriesError(
                f"label {file}: cannot tell which label of task {task.name} its colors are ({_show(found)}); expected "
                f"gray values {', '.join(f'{number} {name}' for name, number in task.labels.items())}, "
                f"or the colors {', '.join(f'{color} {name}' for name, color in label_colors(task).items())}"
            )
        values[0][(colors == color[:, None, None, None]).all(0)] = value
    return values


def check_palette(values: Tensor, colors: Tensor, task: Task, file: str) -> None:
    """Check that a palette does not show one label's value in the color of another: either could be meant.

    Args:
        values: (1, X, Y, Z), indices of the palette, all of them the task's values.
        colors: (C, X, Y, Z), what it shows.
        task: has the labels.
        file: for messages.

    Raises:
        SeriesError: it does.
    """
    known = _known_colors(task, len(colors))
    names = {value: name for name, value in task.labels.items()}
    for value in set(values.unique().tolist()) - {0}:
        color = colors[:, values[0] == value][:, 0]
        told = known.get(tuple(color.tolist()), value)
        if told != value:
            raise SeriesError(
                f"label {file}: its palette shows value {value:g}, {names[value]}, in {_show(color[None])}, the color "
                f"of {names[told]}; expected one of them: save gray values, or the colors without a palette"
            )


def _split(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Colors (C, X, Y, Z), and opacity (X, Y, Z) where it is not the same everywhere."""
    if len(mask) not in (2, 4):
        return mask, None
    return mask[:-1], None if bool((mask[-1] == mask[-1].flatten()[0]).all()) else mask[-1]


def _known_colors(task: Task, channels: int) -> dict[tuple[float, ...], int]:
    """RGB -> label value, by the colors that the server shows; of more labels than colors, none can be told."""
    shown = label_colors(task)
    if channels != 3 or len(set(shown.values())) < len(shown):
        return {}
    return {tuple(map(float, bytes.fromhex(color[1:]))): task.labels[name] for name, color in shown.items()}


def _show(colors: Tensor) -> str:
    def word(color: Sequence[float]) -> str:
        return "#" + "".join(f"{round(part):02X}" for part in color) if len(color) == 3 else f"{color[0]:g}"

    return ", ".join(word(color.tolist()) for color in colors[:_SHOWN]) + (", ..." if len(colors) > _SHOWN else "")
