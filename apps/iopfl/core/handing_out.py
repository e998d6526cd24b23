"""What lies in a folder as clients are sent it: on a grid that ITK opens, and labels with their task's values.

Slices that shift sideways, of a registration or a tilted gantry, are moved by whole voxels (`straightening`), and what
is drawn on them goes back onto them exactly (`label_grids.take_slices`). Beside them an image is as dark as it gets.
A label that somebody put into the folder may say by names or colors what its voxels are: viewers go by values.
"""

from __future__ import annotations

import gzip
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.fileholders import FileHolder
from torch import Tensor

from iopfl.base.errors import SeriesError
from iopfl.core.answers import Answer, Segmentation
from iopfl.core.memory import check_volume
from iopfl.core.segment_writer import SUFFIX
from iopfl.core.task import Task
from iopfl.core.transforms import open_label, read_image
from iopfl.core.writers import is_segmentation_name, write_mask
from iopfl.images.files import is_picture, millimeters, open_nifti, read_to_end, read_voxels, telling
from iopfl.images.headers import read_header
from iopfl.images.label_tables import read_label_table
from iopfl.images.names import find_suffix
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


def copy_image(image: Path) -> Path | None:
    """A copy of an image as clients are sent it, which whoever asks removes; None = it is sent as it is.

    Raises:
        SeriesError: it is not whole, or takes more memory on its straight grid than there is.
    """
    stack = find_stack(image)
    return None if stack is None else _copy(image, lambda target: write_straight_image(image, stack, target))


def copy_label(label: Path, image: Path, tasks: Sequence[Task]) -> Path | None:
    """A copy of a label as clients are sent it, which whoever asks removes; None = it is sent as it is.

    Args:
        label: it has names or colors, or the values of one of the tasks.
        image: that it is of; no file = it is in a PACS, and its labels have a task's values.
        tasks: that it may have been drawn for; the first that has its values, else that has its names, counts.

    Raises:
        SeriesError: its names or colors are none of these tasks', so that viewers would show other ones.
    """
    if image.is_file() and tasks and not _goes_by_values(label):
        if (named := _find_named(label, image, tasks)) is None:
            return None
        task, drawn = named
        return _copy(label, lambda target: write_mask(target, to_straight(drawn), task))
    try:
        if image.is_file() and (plain := _find_plain(label, image)):
            return _copy(label, lambda target: write_mask(target, to_straight(plain)))
        return None if find_stack(image) else copy_image(label)
    except SeriesError:  # damaged, or drawn for something else
        return None


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
    with target.open("wb") as plain, _packing(plain) if is_packed else nullcontext(plain) as file:
        header.write_to(file)
        file.write(b"\0" * (int(header.get_data_offset()) - file.tell()))
        file.write(laid.tobytes(order="F"))


def _copy(file: Path, write: Callable[[Path], None]) -> Path:
    """What is written in a file's place, in the temporary folder."""
    suffix = SUFFIX if is_segmentation_name(file.name) else find_suffix(file.name) or file.suffix
    with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as temporary:
        copy = Path(temporary.name)
    try:
        write(copy)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise
    return copy


def _goes_by_values(label: Path) -> bool:
    """Whether nothing but its values says what the voxels of a label are."""
    if is_picture(label):
        return read_header(label).channels == 1
    return not is_segmentation(label) and not read_label_table(label)


def _find_named(label: Path, image: Path, tasks: Sequence[Task]) -> tuple[Task, Segmentation] | None:
    """A label with the values of its task; None = it has them.

    Raises:
        SeriesError: it is no task's.
    """
    found, problems = None, []
    for task in tasks:
        try:
            like = read_image(image, task)
            read = open_label(label, task, like=like)
        except SeriesError as error:
            problems.append(error)
            continue
        if read.is_as_stored and find_stack(label) is None:
            return None
        if found is None:
            values = torch.tensor(task.label_values, dtype=torch.uint8)[read.classes[0].as_tensor().long()]
            found = task, Segmentation(values, like, Answer(task.name, "", "", 0.0))
    if found is None:
        raise problems[0]
    return found


def _find_plain(label: Path, image: Path) -> Segmentation | None:
    """A label on its image's voxels, where either is on a grid that ITK does not open; None = it is sent as it is."""
    leaning = find_stack(image)
    stack = leaning or find_stack(label)
    if stack is None or is_picture(label) or is_segmentation(label):
        return None
    values = read_voxels(label, colors=False).as_tensor()
    mask = values.to(torch.uint8)
    shape = stack.shape if leaning else (*read_header(image).shape, 1, 1)[:3]
    if tuple(values.shape) != (1, *shape) or not torch.equal(mask.to(values.dtype), values):
        return None
    like = MetaTensor(values, meta={"filename_or_obj": str(image), "affine": torch.from_numpy(stack.affine)})
    return Segmentation(mask[0], like, Answer("", "", "", 0.0))


def _packing(file: IO[bytes]) -> gzip.GzipFile:
    """Without the time and a name of its own: the same image has the same check sum whenever it is sent."""
    return gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0)


def _lay(stack: Stack, mask: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(stack.lay(mask.numpy())))
