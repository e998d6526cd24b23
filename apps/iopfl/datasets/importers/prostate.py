"""The six-site prostate T2 MR collection that came with SAML, for the task `prostate`.

Source: Liu et al., "Shape-aware meta-learning for generalizing prostate MRI
segmentation to unseen domains", MICCAI 2020. One folder per site, in it
`CaseNN.nii.gz` and `CaseNN_segmentation.nii.gz`. Some labels tell zones apart
(1 and 2); the task has one label, so all of them become 1.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from iopfl.base.errors import DatasetError, SeriesError
from iopfl.core import memory
from iopfl.datasets.importers.common import (
    Case,
    Importer,
    by_stem,
    check_found,
    check_missing,
    check_same_size,
    find_files,
)
from iopfl.datasets.site_folders import make_volume
from iopfl.images.files import millimeters, whole_nifti
from iopfl.images.headers import read_header

SITE_FOLDERS = {
    "BIDMC": "BIDMC",
    "BMC": "BMC",
    "HK": "HK",
    "I2CVB": "I2CVB",
    "RUNMC": "RUNMC",
    "UCL": "UCL",
    "ISBI": "RUNMC",
    "ISBI_1.5": "BMC",
}
"""Folder name, as downloaded or as the authors' code calls it, to site."""

_AFFINE_TOLERANCE = 1e-2
"""mm; affines of image and label that differ less are the same."""

_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
)
"""What nibabel and gzip raise on a file that is cut short, altered or something else."""


def _plan(source: Path) -> tuple[list[Case], list[str]]:
    upper = {name.upper(): site for name, site in SITE_FOLDERS.items()}
    # The folder may be the collection, may hold it, or may be one site of it.
    folders = [p for p in (source, *sorted(source.rglob("*"))) if p.is_dir()]
    by_site: dict[str, list[Case]] = {}
    missing_labels, missing_images = [], []
    for folder in folders:
        site = upper.get(folder.name.upper())
        if site is None:
            continue
        images, labels = _volumes(folder)
        if site in by_site and images:
            raise DatasetError(f"{site} is there twice (again in {folder}): keep one copy of it in the folder")
        missing_labels += [f"{site}/{k}_segmentation.nii.gz" for k in images.keys() - labels.keys()]
        missing_images += [f"{site}/{k}.nii.gz" for k in labels.keys() - images.keys()]
        cases = [Case(site, key, key, path, (labels[key],)) for key, path in images.items() if key in labels]
        if cases:
            by_site[site] = cases
    check_missing("prostate", sorted(missing_labels), what="labels")
    check_missing("prostate", sorted(missing_images), what="images")
    check_found(
        "the prostate collection",
        list(by_site),
        expected="site folders BIDMC, BMC, HK, I2CVB, RUNMC, UCL with Case00.nii.gz and Case00_segmentation.nii.gz",
        folder=source,
    )
    absent = sorted(set(SITE_FOLDERS.values()) - by_site.keys())
    notes = [f"sites not found and left out: {', '.join(absent)}"] if absent else []
    return [case for site in sorted(by_site) for case in by_site[site]], notes


def _volumes(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and labels of a site folder, both by case."""
    # Not deeper: a nested folder of the same name, as archives make them, comes by itself.
    files = [p for p in find_files(folder, ".nii", ".nii.gz") if p.parent == folder]
    keys = {p: re.sub(r"\.nii(\.gz)?$", "", p.name, flags=re.IGNORECASE) for p in files}
    cases = {p: re.sub(r"_segmentation$", "", key, flags=re.IGNORECASE) for p, key in keys.items()}
    labels = by_stem((p for p in files if cases[p] != keys[p]), stem=cases.__getitem__)
    images = by_stem((p for p in files if cases[p] == keys[p]), stem=cases.__getitem__)
    return images, labels


def _convert(case: Case, image_file: Path, label_file: Path) -> Iterable[str]:
    """Write image and binary label with fresh headers: grid and voxels, no text fields."""
    image, label = _read(case.image), _read(case.labels[0])
    voxels, values = np.asanyarray(image.dataobj), np.asanyarray(label.dataobj)
    check_same_size(voxels, values, case)
    if voxels.ndim != 3:
        raise DatasetError(f"{case.image} has {voxels.ndim} axes, a volume has 3: remove it or its fourth axis")
    if not np.any(values > 0):
        raise DatasetError(f"{case.labels[0]} shows no prostate: download it again or remove the case")
    if nib.aff2axcodes(image.affine) != nib.aff2axcodes(label.affine):
        raise DatasetError(
            f"{case.labels[0]} is stored in another orientation than its image: download both again or remove the case"
        )
    remarks = []
    found = sorted({int(v) for v in np.unique(values) if v > 0})
    if found != [1]:
        remarks.append(f"label values {', '.join(map(str, found))} became 1")
    if not np.allclose(image.affine, label.affine, atol=_AFFINE_TOLERANCE):
        remarks.append("the label's position in space was replaced by its image's")
    if voxels.dtype.kind not in "iuf" or voxels.dtype.itemsize > 4:
        voxels = voxels.astype(np.float32)
    for data, path in ((voxels, image_file), ((values > 0).astype(np.uint8), label_file)):
        nib.save(make_volume(data, image.affine), path)
    return remarks


def _read(path: Path) -> nib.Nifti1Image:
    """Read a NIfTI volume whole, so that damage shows here.

    Raises:
        DatasetError: the file is damaged or no NIfTI.
    """
    try:
        header = read_header(path)
        if header.stored_bytes > memory.limit():
            raise DatasetError(
                f"{path} holds {header.stored_bytes / 1e9:.1f} GB, more than the memory there is for it "
                f"({memory.limit() / 1e9:.1f} GB): get it anew, or import it on a larger machine"
            )
        with whole_nifti(path) as volume:
            data = np.asanyarray(volume.dataobj)
    except (*_DAMAGE, SeriesError) as error:
        raise DatasetError(f"{path} cannot be read as NIfTI: download it again") from error
    unit = millimeters(volume.header)
    return nib.Nifti1Image(data, np.diag([unit, unit, unit, 1.0]) @ volume.affine, dtype=data.dtype)


PROSTATE = Importer("the six-site prostate collection", ".nii.gz", _plan, _convert)
