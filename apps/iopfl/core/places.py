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
from iopfl.base.image_headers import read_header
from iopfl.core.image_files import is_picture, open_nifti

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
_SAME = 1e-3
"""Difference of two affines that their formats' precision explains."""


def place_in_itk(image: MetaTensor) -> np.ndarray:
    """Affine of an image, voxel index to RAS mm, as ITK has it; the image's own where ITK cannot open the file.

    A picture lies along LPS from the origin, and a JPEG's or TIFF's dots per inch give its spacing.
    """
    own = image.affine.double().numpy()
    source = _source_of(image)
    found = _ask_itk(source) if source.is_file() else None
    if found is None:
        return _LPS_TO_RAS.copy() if is_picture(source) else own
    return own if np.abs(found - own).max() < _SAME else found


def read_nifti_header(image: MetaTensor) -> Any | None:
    """nibabel's header of the NIfTI that an image was read from; None of another format, or where it is gone."""
    source = _source_of(image)
    if not source.name.lower().endswith((".nii", ".nii.gz")) or not source.is_file():
        return None
    read_header(source)  # it is what its name says
    return open_nifti(source).header


def _source_of(image: MetaTensor) -> Path:
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
