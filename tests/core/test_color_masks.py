"""A label drawn in color is what it shows, or refused: it is never empty because it is in another channel."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from iopfl.base.errors import SeriesError
from iopfl.core.colors import label_colors
from iopfl.core.transforms import open_label

from .tiny import DISK

ONE = replace(DISK, labels={"vessel": 1})
TWO = replace(DISK, labels={"rim": 3, "cup": 5})
CLASSES = np.zeros((5, 7), int)
CLASSES[1, 2:5], CLASSES[3, 4:6] = 1, 2


def read(image: Image.Image | np.ndarray, task, folder, suffix: str = ".png", **options):
    path = folder / f"label{suffix}"
    (image if isinstance(image, Image.Image) else Image.fromarray(image.astype(np.uint8))).save(path, **options)
    return open_label(path, task, like=torch.zeros(1, 7, 5, 1))


def paint(classes: np.ndarray, colors) -> np.ndarray:
    return np.array([np.zeros(len(colors[0]), int), *colors])[classes]


def check(found, classes: np.ndarray, *, is_as_stored: bool) -> None:
    assert np.array_equal(found.classes[0, ..., 0].numpy().T, classes)
    assert found.is_as_stored == is_as_stored


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_one_label_in_any_channel_and_any_color(tmp_path, suffix, channels):
    classes = (CLASSES > 0).astype(int)
    for value, bits in itertools.product((1, 130, 255), itertools.product((0, 1), repeat=channels)):
        if any(bits):
            is_gray = bits in ((1, 1, 1), (1, 1, 1, 0))
            if is_gray and value != 1:
                continue  # which is refused as in a gray picture
            found = read(paint(classes, [np.array(bits) * value]), ONE, tmp_path, suffix)
            check(found, classes, is_as_stored=is_gray)


@pytest.mark.parametrize("channel", range(3))
def test_the_tasks_values_in_one_channel(tmp_path, channel):
    check(
        read(paint(CLASSES, np.eye(3, dtype=int)[[channel, channel]] * [[3], [5]]), TWO, tmp_path),
        CLASSES,
        is_as_stored=False,
    )


@pytest.mark.parametrize("alpha", [None, 255, 0])
def test_the_tasks_own_colors_in_every_order(tmp_path, alpha):
    colors = [list(bytes.fromhex(color[1:])) for color in label_colors(TWO).values()]
    for order in ((0, 1), (1, 0)):
        classes = np.array([0, *np.array(order) + 1])[CLASSES]
        pixels = paint(CLASSES, [colors[place] for place in order])
        if alpha is not None:  # white where nothing is seen
            opacity = np.where(CLASSES > 0, 255, alpha)
            pixels = np.dstack([np.where(opacity[..., None] == 0, 255, pixels), opacity])
        check(read(pixels, TWO, tmp_path), classes, is_as_stored=False)


@pytest.mark.parametrize(
    ("colors", "message"),
    [
        ([(255, 0, 0), (0, 255, 0)], "cannot tell which label of task disk its colors are"),
        ([(0, 3, 0), (0, 0, 5)], "#000005, #000300"),
        ([(0, 7, 0), (0, 3, 0)], "gray values 3 rim, 5 cup, or the colors #56B4E9 rim, #E69F00 cup"),
        ([(9, 9, 9, 255), (9, 0, 9, 100)], "drawn half transparent"),
    ],
)
def test_colors_that_cannot_be_told_are_refused(tmp_path, colors, message):
    with pytest.raises(SeriesError, match=f"label label.png: .*{message}"):
        read(paint(CLASSES, colors), TWO, tmp_path)


def palette(indices: np.ndarray, colors) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    image.putpalette([part for color in colors for part in color])
    return image


def test_a_palettes_indices_are_values_if_they_can_be(tmp_path):
    odd = [(9, 9, 9)] * 256
    check(read(palette(np.array([0, 3, 5])[CLASSES], odd), TWO, tmp_path), CLASSES, is_as_stored=True)
    shown = [tuple(bytes.fromhex(color[1:])) for color in label_colors(TWO).values()]
    for order in itertools.permutations(range(3)):
        colors = [[(0, 0, 0), *shown][place] for place in order]
        indices = np.argsort(order)[CLASSES]
        check(read(palette(indices, colors), TWO, tmp_path), CLASSES, is_as_stored=False)
    classes = (CLASSES > 0).astype(int)
    check(read(palette(1 - classes, [(255, 0, 0), (0, 0, 0)]), ONE, tmp_path), classes, is_as_stored=False)


def test_a_palette_that_shows_one_label_in_anothers_color_is_refused(tmp_path):
    colors = [(9, 9, 9)] * 256
    shown = [tuple(bytes.fromhex(color[1:])) for color in label_colors(TWO).values()]
    for number, is_refused in [((3, 5), False), ((5, 3), True)]:
        for value, color in zip(number, shown, strict=True):
            colors[value] = color
        image = palette(np.array([0, 3, 5])[CLASSES], colors)
        if not is_refused:
            check(read(image, TWO, tmp_path), CLASSES, is_as_stored=True)
            continue
        with pytest.raises(SeriesError, match="its palette shows value 3, rim, in #E69F00, the color of cup"):
            read(image, TWO, tmp_path)


def test_an_empty_mask_is_empty_and_a_jpeg_is_none(tmp_path):
    for channels in (3, 4):
        empty = np.zeros((5, 7, channels))
        check(read(empty, TWO, tmp_path), 0 * CLASSES, is_as_stored=True)
    with pytest.raises(SeriesError, match="JPEG changes the values of a label; save it as PNG"):
        read((CLASSES > 0) * 1, ONE, tmp_path, ".jpg")
