"""How a camera was held: EXIF's orientation (JEITA CP-3451, tag 0x0112), which viewers follow, and ITK does not.

A picture, and a mask of it as a picture, are upright here, as a viewer shows them. A mask as a volume, for ITK and so
3D Slicer, has the file's own rows. TIFF is upright for all of them, as its readers turn it themselves.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from monai.data import MetaTensor
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from iopfl.base.errors import SeriesError

TAG = 0x0112
KEY = "orientation"
"""Of a picture's `meta`: what its file says, 1 to 8; 0 = nothing."""

_TURNS: dict[int, tuple[tuple[int, ...], bool]] = {
    2: ((-3,), False),
    3: ((-3, -2), False),
    4: ((-2,), False),
    5: ((), True),
    6: ((-2,), True),
    7: ((-3, -2), True),
    8: ((-3,), True),
}
"""From stored to upright: axes of (..., X, Y, Z) that are flipped, and whether X and Y change places then."""


_AS_SHOWN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation."""


def check_readers_agree(picture: Image.Image) -> None:
    """Refuse a TIFF that is turned by a quarter: Pillow, ITK and viewers each make something else of it.

    Args:
        picture: opened, not loaded.

    Raises:
        SeriesError: it is one.
    """
    said = picture.tag_v2.get(TAG, 1) if isinstance(picture, TiffImageFile) else 1
    if said in (5, 6, 7, 8):
        raise SeriesError(f"its orientation {said} turns it by a quarter, about which readers of TIFF differ: turn it")


def show_upright(picture: Image.Image) -> tuple[Image.Image, int]:
    """A picture as a viewer shows it, and what its file says, 1 to 8; 0 = nothing, as a TIFF, which Pillow turns."""
    picture.load()  # a PNG may say it at its end
    said = 0 if isinstance(picture, TiffImageFile) else _read_orientation(picture)
    return (picture.transpose(_AS_SHOWN[said]) if said > 1 else picture), said


def _read_orientation(picture: Image.Image) -> int:
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # viewers pass over one that is damaged
        exif.load(picture.info.get("exif") or b"")
    found = exif.get(TAG)
    return found if isinstance(found, int) and 1 <= found <= 8 else 0


def find_orientation(image: Tensor) -> int:
    """What the file of an image says; 0 = nothing."""
    return int(image.meta.get(KEY, 0)) if isinstance(image, MetaTensor) else 0


def is_turned(image: Tensor) -> bool:
    """Whether an image's file has its rows elsewhere than a viewer shows them."""
    return find_orientation(image) > 1


def to_upright(stored: Tensor, orientation: int) -> Tensor:
    """From a file's own rows, (..., X, Y, Z), to what a viewer shows.

    >>> to_upright(torch.tensor([[1], [2]])[..., None], 6)[..., 0].tolist()
    [[1, 2]]
    """
    if orientation not in _TURNS:
        return stored
    flipped, is_swapped = _TURNS[orientation]
    upright = stored.flip(flipped) if flipped else stored
    return upright.transpose(-3, -2).contiguous() if is_swapped else upright


def to_stored(upright: Tensor, orientation: int) -> Tensor:
    """The way back of `to_upright`."""
    if orientation not in _TURNS:
        return upright
    flipped, is_swapped = _TURNS[orientation]
    stored = upright.transpose(-3, -2) if is_swapped else upright
    return stored.flip(flipped).contiguous() if flipped else stored.contiguous()


def turn_label(path: Path, label: Tensor, image: Tensor, *, is_volume: bool) -> Tensor:
    """A label of a turned picture, upright.

    Args:
        path: the label's file.
        label: (C, X', Y', Z), upright by what its own file says, if that says anything.
        image: (C, X, Y, Z), upright.
        is_volume: whether the label comes as a volume, hence from ITK, on the file's own rows.

    Raises:
        SeriesError: it may be either, and differs.
    """
    orientation, said = find_orientation(image), find_orientation(label)
    if orientation < 2:
        return label
    fits = label.shape[1:] == image.shape[1:]
    stored_shape = to_stored(image[:1], orientation).shape[1:]
    if label.shape[1:] != stored_shape or (fits and said and not is_volume):
        return label
    turned = to_upright(label, orientation)
    if fits and not is_volume and not torch.equal(_plain(turned), _plain(label)):
        raise SeriesError(
            f"label {path.name}: its image is turned by EXIF (orientation {orientation}), and whether the label is "
            "turned likewise cannot be told by its size; save it with an orientation of its own: 1 as the image is "
            "shown, or as a volume (.nrrd) on the image's own rows"
        )
    return turned


def _plain(values: Tensor) -> Tensor:
    return values.as_tensor() if isinstance(values, MetaTensor) else values
