"""An image's header, and how one is found wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ImageHeader:
    """What a file says that it holds.

    Attributes:
        format: its name for a reader: NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF or BMP.
        shape: voxels along each axis in space, two or three; of a picture columns and rows.
        channels: values of each voxel.
        value_bytes: bytes of each of them, as stored.
    """

    format: str
    shape: tuple[int, ...]
    channels: int
    value_bytes: int

    @property
    def voxels(self) -> int:
        """Voxels in all."""
        return math.prod(self.shape)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all values, not compressed."""
        return self.voxels * self.channels * self.value_bytes


class HeaderError(Exception):
    """A header that is none, or not to be followed; says what it lacks."""


def check(holds: object, problem: str) -> None:
    """Refuse a header.

    Raises:
        HeaderError: it does not hold.
    """
    if not holds:
        raise HeaderError(problem)


def check_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes along an image's axes.

    Raises:
        HeaderError: one of them is not positive, or there are none.
    """
    check(sizes and min(sizes) > 0, f"it says that it measures {show(sizes)}")
    return tuple(sizes)


def show(sizes: Sequence[int]) -> str:
    """Sizes as people write them.

    >>> show((512, 512, 30))
    '512 x 512 x 30'
    """
    return " x ".join(map(str, sizes)) or "nothing"


def read_integer(text: str) -> int:
    """A whole number in a text header, short enough to be meant.

    Raises:
        HeaderError: it is none.
    """
    check(text.isascii() and text.lstrip("+-").isdigit() and len(text) <= 18, f"{text[:20]!r} is no whole number")
    return int(text)
