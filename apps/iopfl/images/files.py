"""The one door through which image files are opened.

Nothing else in the project lets a reader at a file. A header that leads to another file, content that is not
what the name says, and sizes that cannot be are refused before any reader sees them.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import torch
from monai.data import MetaTensor, NibabelReader, NrrdReader, PILReader
from monai.data.image_reader import NrrdImage
from monai.data.utils import correct_nifti_header_if_necessary
from nibabel.fileholders import FileHolder
from nibabel.openers import ImageOpener
from PIL import Image
from torch import Tensor

from iopfl.base.errors import SeriesError
from iopfl.images import exif
from iopfl.images.headers import ImageHeader, read_header
from iopfl.images.headers.metaimage import read_metaimage
from iopfl.images.names import find_suffix
from iopfl.images.notes import FileNotes
from iopfl.images.straightening import FLAT

_NOTES = "notes"
"""Key of an image's `FileNotes` in its `meta`."""

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

_MAX_HEADER = 2**21
"""Bytes of an NRRD's header that are read alone."""

_MILLIMETERS = {1: 1e3, 3: 1e-3}
"""In the unit that a NIfTI says, meters or micrometers; in any other it is taken for millimeters, as ITK does."""
_MILLIMETERS_BY_NAME = {"m": 1e3, "cm": 10.0, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "nm": 1e-6}
"""In the units that an NRRD or a MetaImage says."""

_LPS = "left-posterior-superior"
_TO_RAS = {
    _LPS: (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}
"""Signs of the axes of an NRRD's space."""

_CHUNK = 2**20
_MOST_BEHIND = 2**26  # bytes behind the voxels of a gzipped NIfTI, which nobody needs; a few packed ones may be endless


def is_picture(path: Path) -> bool:
    """Whether a file is a plain picture, which has no spacing."""
    return find_suffix(path.name) in _PICTURES


def find_notes(image: Tensor) -> FileNotes:
    """What the file of an image says of itself; nothing where that is not known."""
    return (image.meta.get(_NOTES) if isinstance(image, MetaTensor) else None) or FileNotes()


def read_voxels(
    path: Path, *, colors: bool = True, check: Callable[[ImageHeader], None] = lambda _: None
) -> MetaTensor:
    """Read an image file as it is stored.

    Args:
        path: the image's file.
        colors: whether a palette becomes its colors; else its indices, which are a label's values.
        check: given the header before anything else is read; raises to refuse the image.

    Returns:
        (C, X, Y, Z) float32 with the source's affine (mm, RAS; identity for a picture).

    Raises:
        SeriesError: the file cannot be read, is not whole in itself, or not what its name says.
    """
    header = read_header(path)
    check(header)
    if is_picture(path):
        _check_pixels(path.name, header.shape)
    with telling(path, header.format):
        image = _as_stored(*_READERS[header.format](path, header, colors))
    if image.ndim == 3:  # a picture: one slice; the affine of a picture says nothing
        affine = torch.eye(4) if is_picture(path) else image.affine
        image = MetaTensor(image.as_tensor()[..., None], meta={**image.meta, "affine": affine})
    if image.ndim != 4:
        raise SeriesError(f"{path.name}: expected an image or a volume, given {image.ndim - 1} dimensions")
    _check_place(path.name, image)
    return image


def _as_stored(array: np.ndarray, meta: dict[str, Any]) -> MetaTensor:
    """Voxels in the order in memory that their file has, channels first.

    MONAI's `EnsureChannelFirst` and `ensure_torch_and_prune_meta` would reorder a volume, twice.
    """
    about = MetaTensor.ensure_torch_and_prune_meta(np.zeros(1, np.float32), meta)
    voxels = torch.from_numpy(array.astype(np.float32))
    channel = float(meta["original_channel_dim"])
    return MetaTensor(voxels[None] if math.isnan(channel) else voxels.movedim(int(channel), 0), meta=about.meta)


def millimeters(header: Any) -> float:
    """In the unit in space of a NIfTI's header."""
    return _MILLIMETERS.get(int(header["xyzt_units"]) & 7, 1.0)


def read_nrrd_fields(path: Path) -> dict[str, Any]:
    """Read the header of an NRRD alone: fields by name, those of other programs too.

    Raises:
        SeriesError: it is none.
    """
    with telling(path, "NRRD"), path.open("rb") as file:
        return nrrd.read_header(BytesIO(file.read(_MAX_HEADER)))


def read_nrrd(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Read an NRRD as it is stored: values along the file's axes, and all fields of its header.

    Raises:
        SeriesError: it is none, or not whole in itself.
    """
    read_header(path)
    with telling(path, "NRRD"):
        return _read_nrrd_data(path)


def find_flips(fields: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """Signs that bring an NRRD's space to RAS; LPS where it says none, as ITK has it. None = a space of its own."""
    return _TO_RAS.get(str(fields.get("space", "lps")).strip().lower())


@contextlib.contextmanager
def telling(path: Path, expected: str) -> Iterator[None]:
    """Say of what kind a file was to be; each reader has errors of its own, and all mean that it is no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        cause = error.__cause__ or error
        text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)  # without its path
        reason = text.replace(str(path), path.name).strip().splitlines()
        raise SeriesError(
            f"{path.name}: cannot be read as an image ({type(cause).__name__}: "
            f"{reason[-1] if reason else 'damaged'}); expected a whole {expected} file"
        ) from error


def _check_pixels(name: str, shape: Sequence[int]) -> None:
    """Check that Pillow takes a picture; of one with more pixels it says that it might be an attack."""
    limit, given = 2 * (Image.MAX_IMAGE_PIXELS or math.inf), math.prod(shape)
    if given > limit:
        raise SeriesError(
            f"{name}: expected a picture of at most {limit / 1e6:.2f} megapixels, this one has {given / 1e6:.2f} "
            f"({' x '.join(map(str, shape))}): give a part of it, or make it smaller"
        )


def _check_place(name: str, image: MetaTensor) -> None:
    """Check that voxels have a size and directions, without which nothing can be resampled."""
    edges = np.linalg.norm(image.affine.numpy()[:3, :3].astype(float), axis=0)
    if np.isfinite(image.affine.numpy()).all() and edges.min() > 0:
        with np.errstate(all="ignore"):
            if abs(np.linalg.det(image.affine.numpy()[:3, :3] / edges)) > FLAT:
                return
    raise SeriesError(
        f"{name}: expected voxels with a size and three directions, but its header says nothing that can be; "
        "export it again"
    )


def open_nifti(path: Path) -> Any:
    """nibabel's image of a NIfTI, with its header alone read: by its path nibabel opens no `.Nii.gz`."""
    with ImageOpener(str(path)) as file:
        sizes = {int.from_bytes(file.read(4), order) for order in ("little", "big") if file.seek(0) == 0}
    kind = nib.Nifti2Image if 540 in sizes else nib.Nifti1Image
    return kind.from_file_map({"image": FileHolder(str(path))})


@contextlib.contextmanager
def whole_nifti(path: Path) -> Iterator[Any]:
    """nibabel's image of a NIfTI, whose voxels are read within; they count once it is left.

    nibabel stops at the last voxel, before gzip's checksum: a flipped bit would become other voxels without a word.
    """
    if find_suffix(path.name) != ".nii.gz":
        yield open_nifti(path)
        return
    with gzip.open(path) as file:
        yield type(open_nifti(path)).from_file_map({"image": FileHolder(fileobj=file)})
        read_to_end(file)


def _read_nifti(path: Path, header: ImageHeader, colors: bool) -> tuple[np.ndarray, dict[str, Any]]:
    reader = NibabelReader()
    reader.filenames = [str(path)]  # what its `read` would set
    with whole_nifti(path) as opened:
        image = correct_nifti_header_if_necessary(opened)
        array, meta = reader.get_data(image)
    unit = millimeters(image.header)
    added = {"filename_or_obj": str(path), _NOTES: FileNotes.of(image.header.extensions)}  # MONAI leaves both out
    return array, {**meta, **added, "affine": np.diag([unit, unit, unit, 1.0]) @ meta["affine"]}


def read_to_end(file: Any) -> None:
    """Read what follows an image's voxels, so that gzip compares the checksum at the end.

    Raises:
        SeriesError: there is no end in sight.
    """
    for _ in range(_MOST_BEHIND // _CHUNK):
        if not file.read(_CHUNK):
            return
    raise SeriesError("much more follows its voxels")


def _read_nrrd(path: Path, header: ImageHeader, colors: bool) -> tuple[np.ndarray, dict[str, Any]]:
    if header.channels > 1:
        raise SeriesError(f"it has {header.channels} values in each voxel: save one of them as a volume")
    data, fields = _read_nrrd_data(path)
    directions = np.asarray(fields.get("space directions", np.diag(fields.get("spacings", np.ones(data.ndim)))), float)
    origin = np.asarray(fields.get("space origin", np.zeros(directions.shape[1])), float)
    # MONAI takes a space for RAS, a mirror image, unless it is this name. One of its own is LPS for ITK.
    to_lps = (np.array(_TO_RAS["lps"]) * (find_flips(fields) or _TO_RAS["lps"]))[: directions.shape[1]]
    fields |= {"space": _LPS, "space directions": directions * to_lps, "space origin": origin * to_lps}
    array, meta = NrrdReader().get_data(NrrdImage(data, fields))
    units = [_MILLIMETERS_BY_NAME.get(str(unit).strip().lower(), 1.0) for unit in fields.get("space units", ())]
    if "affine" in meta and units:
        meta["affine"] = np.diag([*[*units, 1.0, 1.0, 1.0][:3], 1.0]) @ meta["affine"]
    return array, {**meta, "filename_or_obj": str(path)}


def _read_nrrd_data(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    with path.open("rb") as file:
        fields = nrrd.read_header(file)
        if not fields.keys().isdisjoint({"datafile", "data file"}):  # asked once more, of what will follow it
            raise SeriesError("its data are in another file")
        return nrrd.read_data(fields, file), fields


def _read_metaimage(path: Path, header: ImageHeader, colors: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """Read what follows a header of MetaImage; ITK would look for a format of its own choice in the file."""
    with path.open("rb") as file:
        fields = read_metaimage(file)
        content = file.read()
    size = fields.stored_bytes
    if fields.is_packed:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
        content = unpacker.decompress(content, size + 1)  # one more, so that it goes on to the checksum
        if len(content) > size or (len(content) == size and not unpacker.eof):
            raise SeriesError(f"its data do not end after {size} bytes")
    if len(content) < size:
        raise SeriesError(f"its data end after {len(content)} of {size} bytes")
    array = np.frombuffer(content[:size], fields.dtype).reshape(*reversed(fields.shape), fields.channels)
    array = array.transpose(*reversed(range(len(fields.shape))), len(fields.shape))  # (X, Y[, Z], C)
    count = len(fields.shape)
    affine = np.eye(4)  # LPS, as ITK has it
    affine[:count, :count] = np.array(fields.directions).T * fields.spacing
    affine[:count, 3] = fields.origin
    unit = _MILLIMETERS_BY_NAME.get(fields.unit, 1.0)
    affine = np.diag([-unit, -unit, unit, 1.0]) @ affine
    return array, {"affine": affine, "original_channel_dim": -1, "filename_or_obj": str(path)}


def _read_picture(path: Path, header: ImageHeader, colors: bool) -> tuple[np.ndarray, dict[str, Any]]:
    said: list[int] = []

    def convert(image):  # type: ignore[no-untyped-def]  # PIL.Image.Image in and out
        """Palettes and other color spaces as RGB, upright; everything else as stored."""
        exif.check_readers_agree(image)
        if image.size != header.shape:  # known before its pixels are decoded
            raise SeriesError("it says two sizes")
        if getattr(image, "n_frames", 1) > 1:
            raise SeriesError(f"it has {image.n_frames} pages, and which one is meant is not known: save it alone")
        known = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
        upright, orientation = exif.show_upright(image)
        said.append(orientation)
        return upright.convert("RGB") if colors and upright.mode in known else upright

    if header.format == "PNG":
        check_png(path)
    reader = PILReader(converter=convert, formats=(header.format,))  # Pillow would go by content
    array, meta = reader.get_data(reader.read(path))
    return array, {**meta, "filename_or_obj": str(path), exif.KEY: sum(said)}


def check_png(path: Path) -> None:
    """Compare the checksums of a PNG's chunks, which Pillow passes over.

    Raises:
        SeriesError: one does not fit.
    """
    with path.open("rb") as file:
        file.seek(8)
        while head := file.read(8):
            left, found = int.from_bytes(head[:4], "big"), zlib.crc32(head[4:])
            while left and (part := file.read(min(left, _CHUNK))):
                left, found = left - len(part), zlib.crc32(part, found)
            if left or file.read(4) != found.to_bytes(4, "big"):
                raise SeriesError("its checksum does not fit, or it is cut short")
            if head[4:] == b"IEND":
                return
    raise SeriesError("it is cut short")


_READERS: dict[str, Callable[[Path, ImageHeader, bool], tuple[np.ndarray, dict[str, Any]]]] = {
    "NIfTI": _read_nifti,
    "NRRD": _read_nrrd,
    "MetaImage": _read_metaimage,
    **dict.fromkeys(("PNG", "JPEG", "TIFF", "BMP"), _read_picture),
}
"""By the format that a header says."""
