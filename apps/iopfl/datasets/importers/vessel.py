"""Retinal vessels: DRIVE, CHASE_DB1, STARE and HRF, for the task `vessel`.

Label: 1 = vessel. Of several annotators the first is taken, as is usual.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from iopfl.base.errors import DatasetError
from iopfl.datasets.importers.common import (
    Case,
    Importer,
    by_stem,
    check_found,
    check_missing,
    check_same_size,
    count_note,
    find_files,
    read_pictures,
    write_pictures,
)

_Plan = tuple[list[Case], list[str]]


def _matching(folder: Path, pattern: str, *suffixes: str) -> dict[str, Path]:
    """Find files whose name matches; index them by the first group of the pattern."""
    compiled = re.compile(pattern, re.IGNORECASE)
    hits = {path: compiled.fullmatch(path.name) for path in find_files(folder, *suffixes)}
    keys = {path: hit.group(1) for path, hit in hits.items() if hit}
    return by_stem(keys, stem=keys.__getitem__)


def _pair(
    site: str,
    images: dict[str, Path],
    labels: dict[str, Path],
    *,
    expected: str,
    subject: Callable[[str], str],
    part: str | None = None,
) -> list[Case]:
    """Pair images with labels of the same key; name the labels that are missing."""
    check_missing(site, [expected.format(k) for k in images if k not in labels], what="labels")
    return [Case(site, key, subject(key), path, (labels[key],), part) for key, path in images.items()]


def _plan_drive(source: Path) -> _Plan:
    images = _matching(source, r"(\d\d)_(?:training|test)\.tif", ".tif")
    labels = _matching(source, r"(\d\d)_manual1\.gif", ".gif")
    check_found("DRIVE", images, expected="training/images/21_training.tif and the like", folder=source)
    training = {k: p for k, p in images.items() if p.stem.endswith("_training")}
    test = {k: p for k, p in images.items() if k not in training}
    notes = count_note("DRIVE", len(images), 40)
    # Today's download keeps the labels of the test images for its challenge.
    if test and not any(key in labels for key in test):
        notes.append(
            f"DRIVE: the {len(test)} test images have no labels (test/1st_manual) and were left "
            "out; the training images were split by subject instead"
        )
        test = {}
    check_missing("DRIVE", [] if training else ["21_training.tif"], what="training images")
    expected = "1st_manual/{}_manual1.gif"
    cases = []
    for members, part in ((training, "train" if test else None), (test, "test")):
        cases += _pair("DRIVE", members, labels, expected=expected, subject=str, part=part)
    return cases, notes


def _plan_chase(source: Path) -> _Plan:
    images = _matching(source, r"(Image_\d\d[LR])\.jpe?g", ".jpg", ".jpeg")
    labels = _matching(source, r"(Image_\d\d[LR])_1stHO\.png", ".png")
    check_found("CHASE_DB1", images, expected="Image_01L.jpg and the like", folder=source)
    cases = _pair(
        "CHASE_DB1",
        images,
        labels,
        expected="{}_1stHO.png",
        subject=lambda key: key[:-1],  # both eyes of a child together
    )
    return cases, count_note("CHASE_DB1", len(images), 28)


def _plan_stare(source: Path) -> _Plan:
    images = _matching(source, r"(im\d{4})\.ppm(?:\.gz)?", ".ppm", ".ppm.gz")
    labels = _matching(source, r"(im\d{4})\.ah\.ppm(?:\.gz)?", ".ppm", ".ppm.gz")
    check_found("STARE", images, expected="stare-images/im0001.ppm or .ppm.gz and the like", folder=source)
    notes = count_note("STARE", len(images), 20)
    if len(images) > 20:  # the whole collection: 397 images, 20 of them with vessels labeled
        notes = [f"STARE: {len(images.keys() - labels.keys())} images without a label left out"]
        images = {key: path for key, path in images.items() if key in labels}
        check_missing("STARE", [] if images else ["labels-ah/im0001.ah.ppm(.gz)"], what="labels")
    expected = "labels-ah/{}.ah.ppm(.gz)"
    return _pair("STARE", images, labels, expected=expected, subject=str), notes


def _plan_hrf(source: Path) -> _Plan:
    images = _matching(source, r"(\d\d_(?:dr|g|h))\.jpe?g", ".jpg", ".jpeg")
    labels = _matching(source, r"(\d\d_(?:dr|g|h))\.tiff?", ".tif", ".tiff")
    # The masks of the field of view are 01_dr_mask.tif, and do not match.
    check_found("HRF", images, expected="images/01_dr.JPG and the like", folder=source)
    cases = _pair(
        "HRF",
        images,
        labels,
        expected="manual1/{}.tif",
        subject=lambda key: key[:2],
    )
    return cases, count_note("HRF", len(images), 45)


def _convert(case: Case, image_file: Path, label_file: Path) -> Iterable[str]:
    """Write the photograph, and its vessels as 1."""
    image, (label,) = read_pictures(case)
    vessels = (label > 127).astype(np.uint8)
    check_same_size(image, vessels, case)
    if vessels.min() == vessels.max():
        raise DatasetError(
            f"{case.labels[0]} should show vessels bright on black and shows one value only: download it again"
        )
    write_pictures(image, vessels, image_file, label_file)
    return ()


DRIVE = Importer("DRIVE", ".png", _plan_drive, _convert)
CHASE_DB1 = Importer("CHASE_DB1", ".png", _plan_chase, _convert)
STARE = Importer("STARE", ".png", _plan_stare, _convert)
HRF = Importer("HRF", ".png", _plan_hrf, _convert)
