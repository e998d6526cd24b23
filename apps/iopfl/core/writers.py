"""Masks as files: NIfTI, NRRD or a picture, on the source's exact grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import ITKWriter
from PIL import Image
from torch import Tensor

from iopfl.base.errors import ConfigError
from iopfl.base.files import replacing
from iopfl.core.answers import Segmentation
from iopfl.core.disagreement import CHECK_COLOR, CHECK_HERE, find_regions
from iopfl.core.measuring import find_affine
from iopfl.core.memory import check_volume
from iopfl.core.segment_writer import SUFFIX, write_segmentation
from iopfl.core.task import Task
from iopfl.images.exif import TAG, find_orientation, is_turned, to_stored
from iopfl.images.files import is_picture, millimeters
from iopfl.images.headers import read_header
from iopfl.images.names import find_suffix
from iopfl.images.places import find_nifti_stack, is_opened_by_itk, place_in_itk, read_nifti_header, source_of
from iopfl.images.straightening import upright

_LOSSY = (".jpg", ".jpeg")
_SERVED = (".nii.gz", ".nii", ".nrrd", SUFFIX, ".mha", ".png", ".tif", ".bmp")


def mask_name(image: Path, suffix: str | None = None) -> str:
    """File name of an image's mask: the image's own, and PNG for a JPEG, which would blur labels.

    >>> mask_name(Path("a/eye.jpg")), mask_name(Path("a/case.nii.gz")), mask_name(Path("a/case.nii.gz"), ".nrrd")
    ('eye.png', 'case.nii.gz', 'case.nrrd')
    """
    own = find_suffix(image.name) or ".nii.gz"
    stem = image.name[: -len(own)] if find_suffix(image.name) else image.name
    return stem + (suffix or (".png" if own in _LOSSY else own))


def write_mask(path: Path, segmentation: Segmentation, task: Task | None = None) -> None:
    """Write a mask, whole or not at all.

    The file's suffix says the format: `.nii`, `.nii.gz`, `.nrrd` or `.mha` where the source lies,
    `.seg.nrrd` with its task's names too, or `.png`, `.tif`, `.bmp` for the mask of a picture.

    Args:
        path: where.
        segmentation: the mask.
        task: whose labels a `.seg.nrrd` names; without it that is a plain `.nrrd`.

    Raises:
        ConfigError: a picture's format for a volume, a format that loses labels, or an unknown one.
    """
    suffix = find_suffix(path.name)
    if suffix is None or suffix in _LOSSY:
        raise ConfigError(f"{path.name}: masks are written as {', '.join(_SERVED)}")
    if not is_picture(path):
        stored = to_stored(segmentation.mask, find_orientation(segmentation.image))
        segmentation = replace(segmentation, mask=stored)
    with replacing(path) as temporary:
        named = temporary.with_name(temporary.name + suffix)  # writers look at the whole suffix
        try:
            if task is not None and is_segmentation_name(path.name):
                write_segmentation(named, segmentation.mask.numpy(), place_in_itk(segmentation.image), task)
            else:
                _write(named, segmentation)
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def write_disagreement(path: Path, segmentation: Segmentation) -> None:
    """Write where the experts disagree, in percent of them, as `write_mask` does.

    Raises:
        ConfigError: as there, or nobody asked for it.
    """
    write_mask(path, replace(segmentation, mask=_find_disagreement(segmentation)))


def mask_suffix(image: Path, asked: str) -> str:
    """The ending of a mask that a client gets, lower case.

    Args:
        image: the source.
        asked: ending that the client wants; empty = the image's own, or PNG for a JPEG.

    Raises:
        ConfigError: a format that no mask is written in, or a picture's for a volume.
    """
    if not asked:
        return find_suffix(mask_name(image)) or ".nii.gz"
    suffix = {".tiff": ".tif"}.get(asked.lower(), asked.lower())
    if suffix not in _SERVED:
        raise ConfigError(f"result_extension {asked!r} is not served: ask for one of {', '.join(_SERVED)}")
    shape = read_header(image).shape
    if is_picture(Path(f"mask{suffix}")) and len(shape) > 2 and shape[2] > 1:
        fitting = [name for name in _SERVED if not is_picture(Path(f"mask{name}"))]
        raise ConfigError(
            f"result_extension {asked!r}: a volume of {shape[2]} slices does not fit a picture: ask for one of "
            f"{', '.join(fitting)}"
        )
    return suffix


def write_regions(path: Path, segmentation: Segmentation) -> None:
    """Write where to check as a segmentation of 3D Slicer (`.seg.nrrd`) with that one segment.

    Args:
        path: where.
        segmentation: with the experts' disagreement.

    Raises:
        ConfigError: nobody asked for it.
    """
    disagreement = _find_disagreement(segmentation)
    affine = find_affine(segmentation.image.affine.numpy(), disagreement.shape)
    regions = find_regions(disagreement.numpy(), affine)
    regions = to_stored(torch.from_numpy(regions), find_orientation(segmentation.image)).numpy()
    one = Task(name="disagreement", labels={CHECK_HERE: 1}, spatial_dims=2)
    place = place_in_itk(segmentation.image)
    write_segmentation(path, regions, place, one, {CHECK_HERE: CHECK_COLOR})


def is_segmentation_name(name: str) -> bool:
    """Whether a file's name is that of a segmentation of 3D Slicer."""
    return name.lower().endswith(SUFFIX)


def _find_disagreement(segmentation: Segmentation) -> Tensor:
    """(X, Y, Z) uint8, percent of the experts."""
    if segmentation.disagreement is None:
        raise ConfigError("expected an answer with the experts' disagreement: ask for it with the answer")
    return segmentation.disagreement


def _write(path: Path, segmentation: Segmentation) -> None:
    mask = segmentation.mask
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(_to_nifti(segmentation), path)
    elif is_picture(path):
        if mask.shape[-1] != 1:
            raise ConfigError(f"a volume of {mask.shape[-1]} slices does not fit a picture: use .nii.gz")
        said: dict[str, Any] = {}
        if is_turned(segmentation.image) and not path.name.endswith(".bmp"):
            said["exif"] = Image.Exif()
            said["exif"][TAG] = 1  # as shown
        Image.fromarray(np.ascontiguousarray(mask[..., 0].numpy().T)).save(path, **said)
    else:
        affine = place_in_itk(segmentation.image)
        writer = ITKWriter("uint8")
        writer.set_data_array(mask, channel_dim=None, squeeze_end_dims=False)  # one slice is a volume too
        # The same affine twice: nothing is resampled, but MONAI's ITK writer fails when told so.
        writer.set_metadata({"affine": affine, "original_affine": affine, "spatial_shape": tuple(mask.shape)})
        writer.write(str(path), verbose=False)


def _to_nifti(segmentation: Segmentation) -> nib.Nifti1Image:
    """A mask with the qform and sform of its source, as different as they may be: readers choose between them."""
    header, mask = read_nifti_header(segmentation.image), segmentation.mask.numpy()
    place = place_in_itk(segmentation.image)
    if header is None:
        if stack := find_nifti_stack(segmentation.image):  # an NRRD, which may lean
            check_volume(stack.straight_shape, 1, 1)
            mask, place = stack.lay(mask), stack.straight_affine
        made = nib.Nifti1Image(mask, place)
        made.set_qform(place, code="aligned")
        made.header.set_xyzt_units("mm")
        return made
    kept = nib.Nifti1Header()
    kept.set_data_dtype(mask.dtype)
    kept.set_data_shape(mask.shape)
    kept.set_zooms([abs(float(edge)) or 1.0 for edge in header["pixdim"][1:4]])  # one slice may be of two dimensions
    kept["xyzt_units"] = int(header["xyzt_units"]) & 7
    kept.set_qform(*header.get_qform(coded=True))
    kept.set_sform(*header.get_sform(coded=True))
    if not is_opened_by_itk(source_of(segmentation.image)):
        unit = 1 / millimeters(header)
        kept.set_qform(np.diag([unit, unit, unit, 1.0]) @ upright(mask.shape, place), code="aligned")
    return nib.Nifti1Image(mask, None, kept)
