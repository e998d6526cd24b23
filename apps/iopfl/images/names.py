"""Names of image files: their endings and stems, and which of several files of one stem is taken."""

from __future__ import annotations

from pathlib import Path

from iopfl.images.headers import IMAGE_SUFFIXES

_IMAGES_FIRST = (".nii.gz", ".nii", ".nrrd", ".mha", ".jpg", ".jpeg", ".tif", ".tiff", ".png", ".bmp")
"""Of several files of one stem the image is the first of these: a photograph, not the mask beside it."""
_LABELS_FIRST = IMAGE_SUFFIXES
"""The same of labels, for which a JPEG comes last of what is likely: its values are not exact."""


def find_suffix(name: str) -> str | None:
    """The image suffix of a file name (`.nii.gz` before `.gz`), or None.

    >>> find_suffix("case01.nii.gz")
    '.nii.gz'
    """
    return next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), None)


def find_stem(name: str) -> str:
    """A file name without its image suffix.

    >>> find_stem("case01.nii.gz")
    'case01'
    """
    suffix = find_suffix(name)
    return name[: -len(suffix)] if suffix else Path(name).stem


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image, whatever the case of its ending; hidden ones, as macOS leaves, are not.

    >>> is_image_name("CASE01.NII.GZ"), is_image_name("._case01.nii.gz")
    (True, False)
    """
    return not name.startswith(".") and find_suffix(name) is not None


def rank_ending(ending: str, *, of_label: bool = False) -> tuple[int, str]:
    """Sort key of endings: of several files of one stem, the image or the label is the one that comes first.

    >>> sorted([".png", ".NII", ".nii.gz", ".jpg"], key=rank_ending)
    ['.nii.gz', '.NII', '.jpg', '.png']
    """
    order = _LABELS_FIRST if of_label else _IMAGES_FIRST
    known = ending.lower()
    return (order.index(known) if known in order else len(order), ending)
