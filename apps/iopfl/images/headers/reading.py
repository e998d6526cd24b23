"""From a file to its header: its name says the format, its content must be that."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from iopfl.base.errors import SeriesError
from iopfl.images.headers import pictures
from iopfl.images.headers.header import HeaderError, ImageHeader
from iopfl.images.headers.metaimage import read_metaimage
from iopfl.images.headers.nifti import read_nifti, read_packed_nifti
from iopfl.images.headers.nrrd import read_nrrd

_READERS: dict[str, tuple[str, Callable[[BinaryIO], ImageHeader]]] = {
    ".nii.gz": ("gzipped NIfTI", read_packed_nifti),
    ".nii": ("NIfTI", read_nifti),
    ".nrrd": ("NRRD", read_nrrd),
    ".mha": ("MetaImage", read_metaimage),
    ".png": ("PNG", pictures.read_png),
    ".jpg": ("JPEG", pictures.read_jpeg),
    ".jpeg": ("JPEG", pictures.read_jpeg),
    ".tif": ("TIFF", pictures.read_tiff),
    ".tiff": ("TIFF", pictures.read_tiff),
    ".bmp": ("BMP", pictures.read_bmp),
}

IMAGE_SUFFIXES = tuple(_READERS)
"""`.nii.gz` before what it ends in."""

_UNREADABLE = (HeaderError, OSError, EOFError, zlib.error, ValueError, OverflowError)


def read_header(path: Path) -> ImageHeader:
    """Read an image's header and nothing else, in time and memory that do not grow with what it says.

    Of a compressed NRRD the data are unpacked once, and thrown away, to see that they are as many as it says.

    Raises:
        SeriesError: it is not of the format that its name says, not whole in itself, or says what cannot be.
    """
    name = path.name.lower()
    expected, read = next((found for suffix, found in _READERS.items() if name.endswith(suffix)), ("", None))
    if read is None:
        raise SeriesError(f"{path.name}: expected a name that ends in {', '.join(IMAGE_SUFFIXES)}")
    try:
        with path.open("rb") as file:
            return read(file)
    except _UNREADABLE as error:
        problem = str(error) if isinstance(error, HeaderError) else _explain(error)
        raise SeriesError(
            f"{path.name}: cannot be read as an image ({problem}); expected a whole {expected} file, "
            "with its data in it and a name that says its format: export it again"
        ) from error


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()  # without the file's place
    return "it is damaged or cut short"
