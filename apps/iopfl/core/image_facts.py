"""What an image file says of itself that tells whether it is a task's; from its header alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from iopfl.base.errors import SeriesError
from iopfl.core.criteria import PICTURE, ImageFacts, describe_volume
from iopfl.images.files import is_picture, open_nifti, read_nrrd_fields
from iopfl.images.headers import read_header
from iopfl.images.headers.metaimage import MetaImageHeader
from iopfl.images.names import find_suffix


def read_facts(path: Path) -> ImageFacts:
    """What an image file says: kind, size, and orientation of its slices; nothing of one that cannot be read."""
    try:
        return _read(path)
    except (SeriesError, ValueError, KeyError, TypeError):  # what is wrong with it is said by who reads it
        return ImageFacts()


def _read(path: Path) -> ImageFacts:
    if find_suffix(path.name) == ".nrrd":  # `read_header` would unpack all of it
        return _read_nrrd(path)
    header = read_header(path)
    if is_picture(path):
        columns, rows = header.shape
        return ImageFacts(kind=PICTURE, slices=1, rows=rows, columns=columns, channels=header.channels)
    shape = (*header.shape, 1, 1)[:3]
    if isinstance(header, MetaImageHeader):
        edges = np.eye(3)
        count = len(header.shape)
        edges[:count, :count] = np.array(header.directions).T * header.spacing
    else:
        edges = open_nifti(path).affine[:3, :3]
    return describe_volume(shape, edges, header.channels)


def _read_nrrd(path: Path) -> ImageFacts:
    fields = read_nrrd_fields(path)
    sizes = [int(size) for size in fields["sizes"]]
    directions = np.atleast_2d(np.asarray(fields.get("space directions", np.full((len(sizes), 3), np.nan)), float))
    is_space = np.isfinite(directions).all(axis=1) if "space directions" in fields else np.ones(len(sizes), bool)
    if is_space.sum() > 3:
        raise SeriesError("more axes than a volume has")
    shape = [size for size, space in zip(sizes, is_space, strict=True) if space]
    channels = int(np.prod([size for size, space in zip(sizes, is_space, strict=True) if not space], dtype=int))
    edges = np.full((3, 3), np.nan)
    found = directions[is_space]
    edges[: found.shape[1], : len(found)] = found.T
    return describe_volume((*shape, 1, 1)[:3], edges, channels)
