"""Images in a folder that ITK does not open, and what is made of them, as clients are sent them: on a straight grid.

Slices that shift sideways, of a registration or a tilted gantry, are moved by whole voxels (`straightening`), and what
is drawn on them goes back onto them exactly (`label_grids.take_slices`). Beside them an image is as dark as it gets.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.fileholders import FileHolder
from torch import Tensor

from iopfl.core.answers import Answer, Segmentation
from iopfl.core.memory import check_volume
from iopfl.core.writers import write_mask
from iopfl.images.files import is_picture, millimeters, open_nifti, read_to_end, read_voxels, telling
from iopfl.images.notes import FileNotes
from iopfl.images.places import find_stack, source_of
from iopfl.images.segment_files import is_segmentation
from iopfl.images.straightening import Stack

_ALIGNED = 2
"""Code of a NIfTI's form that says of what it is."""


def to_straight(segmentation: Segmentation) -> Segmentation:
    """A segmentation on the grid that its image is handed out on.

    Raises:
        SeriesError: that grid takes more memory than there is for an answer.
    """
    stack = find_stack(source_of(segmentation.image))
    if stack is None:
        return segmentation
    check_volume(stack.straight_shape, 1, 1)
    where = segmentation.disagreement
    mask = _lay(stack, segmentation.mask)
    return replace(
        segmentation,
        mask=mask,
        image=MetaTensor(mask[None], affine=torch.from_numpy(stack.straight_affine)),
        disagreement=None if where is None else _lay(stack, where),
    )


def write_straight_image(source: Path, stack: Stack, target: Path) -> None:
    """Copy a NIfTI onto its straight grid, with the type, unit and scale of its voxels.

    Args:
        source: the image.
        stack: of `find_stack`.
        target: where.

    Raises:
        SeriesError: it is not whole, or takes more memory on that grid than there is.
    """
    is_packed = source.name.lower().endswith(".gz")
    image = open_nifti(source)
    shape, dtype = image.shape, image.get_data_dtype()
    check_volume(stack.straight_shape, math.prod(shape[3:]), dtype.itemsize)
    slope, inter = image.dataobj.slope, image.dataobj.inter
    with telling(source, "NIfTI"), gzip.open(source) if is_packed else source.open("rb") as file:
        opened = type(image).from_file_map({"image": FileHolder(fileobj=file)})
        raw = np.asarray(opened.dataobj.get_unscaled()).reshape((*stack.shape, *shape[3:]))
        read_to_end(file)
    padding = FileNotes.of(image.header.extensions).padding
    finite = raw[np.isfinite(raw)] if dtype.kind == "f" else raw
    darkest = (finite.min() if slope >= 0 else finite.max()) if finite.size else 0
    laid = stack.lay(raw, fill=darkest if padding is None else (padding - inter) / slope)

    header = nib.Nifti1Header.from_header(image.header, check=False)  # of a NIfTI-2 too, which ITK does not open
    header.extensions = image.header.extensions
    header.set_data_shape(laid.shape)
    unit = 1 / millimeters(header)
    place = np.diag([unit, unit, unit, 1.0]) @ stack.straight_affine
    code = int(header["sform_code"]) or _ALIGNED
    header.set_sform(place, code=code)
    header.set_qform(place, code=code)
    header.set_slope_inter(slope, inter)
    header.set_data_offset(header.single_vox_offset + header.extensions.get_sizeondisk())
    with gzip.open(target, "wb", compresslevel=1) if is_packed else target.open("wb") as file:
        header.write_to(file)
        file.write(b"\0" * (int(header.get_data_offset()) - file.tell()))
        file.write(laid.tobytes(order="F"))


def write_straight_label(label: Path, image: Path, target: Path) -> bool:
    """Copy an image's label onto the grid that the image is handed out on.

    Returns:
        Whether there is a copy: a label that is sent as it is needs none.

    Raises:
        SeriesError: it cannot be read.
    """
    stack = find_stack(image)
    if stack is None or is_picture(label) or is_segmentation(label):
        return False
    values = read_voxels(label, colors=False).as_tensor()
    mask = values.to(torch.uint8)
    if tuple(values.shape) != (1, *stack.shape) or not torch.equal(mask.to(values.dtype), values):
        return False
    like = MetaTensor(values, meta={"filename_or_obj": str(image), "affine": torch.from_numpy(stack.affine)})
    write_mask(target, to_straight(Segmentation(mask[0], like, Answer("", "", "", 0.0))))
    return True


def _lay(stack: Stack, mask: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(stack.lay(mask.numpy())))
