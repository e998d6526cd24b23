"""What the importers share: finding, pairing, reading and writing."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image

from iopfl.base.errors import DatasetError, SeriesError
from iopfl.images import exif
from iopfl.images.files import check_png

_NAMES_SHOWN = 5
"""How many names of missing files a message lists."""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM")
"""In which pictures of data sets come. Of others that Pillow knows, some run programs or follow what they name."""

_PNG = b"\x89PNG"

_MAX_UNPACKED = 2**29
"""Bytes of a gzipped picture; Pillow itself refuses one of more pixels than that."""

_DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow and gzip raise on a file that is cut short, altered or something else."""


@dataclass(frozen=True)
class Case:
    """One image of a data set, with its label, before it is converted.

    Attributes:
        site: site folder it goes to.
        stem: file name it gets, without extension.
        subject: whom it shows; subjects are never split.
        image: the image as downloaded.
        labels: the label as downloaded; more than one file where the data set
            keeps structures apart (disc, cup).
        part: `train` or `test` where the data set has an official split.
    """

    site: str
    stem: str
    subject: str
    image: Path
    labels: tuple[Path, ...]
    part: str | None = None


@dataclass(frozen=True)
class Importer:
    """How one data set is read.

    Attributes:
        title: what a person calls it.
        extension: the extension of the files written, `.png` or `.nii.gz`.
        plan: download folder to cases and notes; raises `DatasetError`
            naming what is missing.
        convert: write image and label of a case; returns remarks about it.
    """

    title: str
    extension: str
    plan: Callable[[Path], tuple[list[Case], list[str]]]
    convert: Callable[[Case, Path, Path], Iterable[str]]


def find_files(folder: Path, *suffixes: str) -> list[Path]:
    """Find files below a folder by the end of their name, whatever its case.

    Hidden files, as archives of other systems leave them, are not among them.
    """
    ends = tuple(suffix.lower() for suffix in suffixes)
    return sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(ends)
        and not path.name.startswith(".")
        and "__MACOSX" not in path.parts
        and path.is_file()
    )


def by_stem(paths: Iterable[Path], *, stem: Callable[[Path], str]) -> dict[str, Path]:
    """Index files by a part of their name.

    Raises:
        DatasetError: two files have it in common.
    """
    index: dict[str, Path] = {}
    for path in paths:
        key = stem(path)
        if key in index:
            raise DatasetError(
                f"{index[key].name} is there twice ({index[key].parent} and {path.parent}): "
                "keep one copy of the data set in the folder"
            )
        index[key] = path
    return index


def check_found(title: str, found: Collection, *, expected: str, folder: Path) -> None:
    """Refuse a folder in which nothing of a data set was found.

    Raises:
        DatasetError: saying what was looked for, and where.
    """
    if not found:
        raise DatasetError(
            f"no images of {title} in {folder}: expected {expected}; give the folder of the unpacked download"
        )


def check_missing(title: str, missing: Sequence[str], *, what: str) -> None:
    """Refuse a data set of which files are missing.

    Raises:
        DatasetError: with their number and the first names.
    """
    if missing:
        names = ", ".join(missing[:_NAMES_SHOWN])
        more = ", ..." if len(missing) > _NAMES_SHOWN else ""
        raise DatasetError(
            f"{title}: {len(missing)} {what} missing ({names}{more}): "
            "download and unpack the data set again, or add these files"
        )


def count_note(title: str, found: int, published: int) -> list[str]:
    """Say so when a download is not the whole data set."""
    if found == published:
        return []
    return [f"{title} has {published} images, {found} were found"]


def read_pictures(case: Case) -> tuple[np.ndarray, list[np.ndarray]]:
    """Read the picture and the labels of a case, as a viewer shows the picture.

    Returns:
        (height, width, 3) uint8, and (height, width) uint8 of each label.

    Raises:
        DatasetError: a file is damaged or no picture, or how a label lies on a picture that EXIF turns is not known.
    """
    image, turned = _read_picture(case.image, "RGB")
    like = MetaTensor(torch.empty(1, image.shape[1], image.shape[0], 1), meta={exif.KEY: turned})
    labels = []
    for path in case.labels:
        label, said = _read_picture(path, "L")
        drawn = MetaTensor(torch.from_numpy(label.T.copy())[None, ..., None], meta={exif.KEY: said})
        try:
            upright = exif.turn_label(path, drawn, like, is_volume=False)
        except SeriesError as error:
            raise DatasetError(str(error)) from error
        labels.append(upright[0, ..., 0].numpy().T)
    return image, labels


def _read_picture(path: Path, mode: str) -> tuple[np.ndarray, int]:
    """A picture, gzipped or not, in one of `_FORMATS`, upright: (height, width[, 3]) uint8; its orientation."""
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            with gzip.open(io.BytesIO(content)) as packed:
                content = packed.read(_MAX_UNPACKED)
        if content.startswith(_PNG) and path.suffix.lower() != ".gz":
            check_png(path)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            exif.check_readers_agree(picture)
            upright, said = exif.show_upright(picture)
            return np.asarray(upright.convert(mode)), said
    except SeriesError as error:
        raise DatasetError(f"{path}: {error}") from error
    except _DAMAGE as error:
        raise DatasetError(f"{path} cannot be read as a picture: download it again") from error


def write_pictures(image: np.ndarray, label: np.ndarray, image_file: Path, label_file: Path) -> None:
    """Write an RGB image and its label as PNG, without any metadata.

    Args:
        image: (height, width, 3) uint8.
        label: (height, width) uint8, label values as of the task.
        image_file: where the image goes.
        label_file: where the label goes.
    """
    Image.fromarray(image).save(image_file)
    Image.fromarray(label).save(label_file)


def check_same_size(image: np.ndarray, label: np.ndarray, case: Case) -> None:
    """Refuse a label that is not on its image's grid.

    Raises:
        DatasetError: with both sizes in pixels or voxels.
    """
    height_width = image.shape[:2] if image.ndim == 3 and image.shape[2] == 3 else image.shape
    if tuple(height_width) != tuple(label.shape):
        raise DatasetError(
            f"{case.labels[0]} measures {' x '.join(map(str, label.shape))}, "
            f"its image {' x '.join(map(str, height_width))}: download both again"
        )
