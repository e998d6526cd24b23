"""Where an image lies in the patient, for each of those who read it.

nibabel and ITK (and so 3D Slicer) read the same NIfTI or picture differently: which of qform and sform counts, what
holds when neither is set, whether a picture's dots per inch are a spacing. A mask has to lie on its image for both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor

from iopfl.base.errors import SeriesError
from iopfl.images.files import is_picture, millimeters, open_nifti
from iopfl.images.headers import read_header
from iopfl.images.straightening import Stack, find_lean, straighten

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_READERS = {
    "NIfTI": "NiftiImageIO",
    "NRRD": "NrrdImageIO",
    "MetaImage": "MetaImageIO",
    "PNG": "PNGImageIO",
    "JPEG": "JPEGImageIO",
    "TIFF": "TIFFImageIO",
    "BMP": "BMPImageIO",
}
_NIFTI_2 = 540  # bytes of its header
_SAME = 1e-3
"""Difference of two affines that their formats' precision explains: mm, or edges of smaller voxels."""


def place_in_itk(image: MetaTensor) -> np.ndarray:
    """Affine of an image, voxel index to RAS mm, as ITK has it.

    A picture lies along LPS from the origin, and a JPEG's or TIFF's dots per inch give its spacing. ITK opens no NIfTI
    whose axes lean; it is given one on a straight grid (`find_stack`).
    """
    own = image.affine.double().numpy()
    source = source_of(image)
    found = _ask_itk(source) if source.is_file() else None
    if found is None and is_picture(source):
        return _LPS_TO_RAS.copy()
    if found is None:
        return own
    edge = np.linalg.norm(own[:3, :3], axis=0).min()
    return own if np.abs(found - own).max() < _SAME * min(1.0, edge) else found


def is_opened_by_itk(path: Path) -> bool:
    """Whether ITK opens a file; it opens no NIfTI whose axes lean and that has no qform beside its sform."""
    return _ask_itk(path) is not None


def find_stack(path: Path) -> Stack | None:
    """Where the slices of an image lie on the straight grid that it is handed out on, in mm.

    None of what ITK opens, which is handed out as it is. A NIfTI-2, which it does not, has one however straight.
    """
    if not _is_nifti(path) or not path.is_file() or is_opened_by_itk(path):
        return None
    try:
        read_header(path)  # it is what its name says
        header = open_nifti(path).header
    except SeriesError:
        return None
    if header.get_data_dtype().kind not in "iuf":  # colors, complex values: no image of any task
        return None
    unit = millimeters(header)
    place = np.diag([unit, unit, unit, 1.0]) @ header.get_best_affine()
    shape = (*header.get_data_shape(), 1, 1)[:3]
    is_second = int(header["sizeof_hdr"]) == _NIFTI_2  # which ITK does not open, however straight
    return find_lean(shape, place) or (straighten(shape, place) if is_second else None)


def find_nifti_stack(image: MetaTensor) -> Stack | None:
    """Where a mask of an image lies as a NIfTI, if its own axes lean: ITK opens an NRRD or MetaImage that does."""
    source = source_of(image)
    return find_stack(source) if _is_nifti(source) else find_lean(image.shape[-3:], place_in_itk(image))


def read_nifti_header(image: MetaTensor) -> Any | None:
    """nibabel's header of the NIfTI that an image was read from; None of another format, or where it is gone."""
    source = source_of(image)
    if not _is_nifti(source) or not source.is_file():
        return None
    read_header(source)  # it is what its name says
    return open_nifti(source).header


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def source_of(image: MetaTensor) -> Path:
    """The file that an image was read from."""
    return Path(str(image.meta.get("filename_or_obj", "")))


def _ask_itk(path: Path) -> np.ndarray | None:
    import SimpleITK

    try:
        information = SimpleITK.ImageFileReader()
        information.SetImageIO(_READERS[read_header(path).format])  # ITK would choose one by content
        information.SetFileName(str(path))
        information.ReadImageInformation()
    except (SeriesError, RuntimeError):  # a shear, which ITK does not take
        return None
    axes = information.GetDimension()
    direction = np.array(information.GetDirection()).reshape(axes, axes)
    kept = min(axes, 3)
    affine = np.eye(4)
    affine[:kept, :kept] = (direction * information.GetSpacing())[:kept, :kept]
    affine[:kept, 3] = information.GetOrigin()[:kept]
    return _LPS_TO_RAS @ affine
