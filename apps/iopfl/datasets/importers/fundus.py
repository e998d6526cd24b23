"""Optic disc and cup in four sites, for the task `optic_disc_cup`.

Two layouts are read. The crops that are handed on for domain generalization
and federated learning (Wang et al., "DoFE", IEEE TMI 2020):
`Domain1..4/{train,test}/ROIs/{image,mask}/*.png`. And the originals of
Drishti-GS, RIM-ONE r3 and REFUGE, which are cropped here around the disc the
way the former are.

Label: 1 = neuroretinal rim, 2 = cup; the disc is both together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from iopfl.base.errors import DatasetError
from iopfl.datasets.importers.common import (
    Case,
    Importer,
    by_stem,
    check_found,
    check_missing,
    check_same_size,
    find_files,
    read_pictures,
    write_pictures,
)

ROI_SIDE = 800
"""Pixels: side of the square around the disc, as in the DoFE crops."""

DOMAINS = {
    "Domain1": "Drishti-GS",
    "Domain2": "RIM-ONE-r3",
    "Domain3": "REFUGE-train",
    "Domain4": "REFUGE-val",
}
"""Folder of the cropped collection to site."""

RIM, CUP = 1, 2


def _plan(source: Path) -> tuple[list[Case], list[str]]:
    cases, notes = _plan_domains(source)
    if not cases:
        for plan in (_plan_drishti, _plan_rim_one, _plan_refuge):
            cases += plan(source)
    check_found(
        "optic disc and cup",
        cases,
        expected="Domain1/train/ROIs/image/*.png, or the originals of Drishti-GS, RIM-ONE r3 or REFUGE",
        folder=source,
    )
    absent = [s for s in DOMAINS.values() if s not in {case.site for case in cases}]
    if absent:
        notes.append(f"sites not found and left out: {', '.join(absent)}")
    return cases, notes


def _subject(stem: str) -> str:
    """Subject of a file name: RIM-ONE r3 has both eyes of some, `N-1-L` and `N-1-R`."""
    return re.sub(r"-[LR]$", "", stem)


def _plan_domains(source: Path) -> tuple[list[Case], list[str]]:
    """Plan the cropped collection; its train and test folders are its split."""
    cases, missing = [], []
    pattern = re.compile(r"(Domain[1-4])/(train|test)/ROIs/image")
    for path in find_files(source, ".png"):
        place = pattern.search(path.parent.as_posix())
        if place is None:
            continue
        domain, part = place.groups()
        mask = path.parent.with_name("mask") / path.name
        if not mask.is_file():
            missing.append(f"{domain}/{part}/ROIs/mask/{path.name}")
        cases.append(Case(DOMAINS[domain], path.stem, _subject(path.stem), path, (mask,), part))
    check_missing("optic_disc_cup", missing, what="masks")
    return cases, []


def _plan_drishti(source: Path) -> list[Case]:
    """Plan Drishti-GS: `{Training,Test}/Images/**/drishtiGS_NNN.png` and soft maps."""
    soft = by_stem(find_files(source, "segSoftmap.png"), stem=lambda p: p.name.lower())
    cases, missing = [], []
    for path in find_files(source, ".png"):
        if not re.fullmatch(r"drishtiGS_\d+", path.stem) or "Images" not in path.parts:
            continue
        names = [f"{path.stem}_ODsegSoftmap.png", f"{path.stem}_cupsegSoftmap.png"]
        missing += [name for name in names if name.lower() not in soft]
        labels = tuple(soft.get(name.lower(), Path(name)) for name in names)
        places = (source.name, *path.relative_to(source).parts)
        part = "test" if "Test" in places else "train"
        cases.append(Case("Drishti-GS", path.stem, path.stem, path, labels, part))
    check_missing("Drishti-GS", missing, what="soft maps")
    return cases


def _plan_rim_one(source: Path) -> list[Case]:
    """Plan RIM-ONE r3: stereo images, the average of its experts' masks."""
    masks = by_stem(find_files(source, "-Disc-Avg.png", "-Cup-Avg.png"), stem=lambda p: p.name.lower())
    cases, missing = [], []
    for path in find_files(source, ".jpg"):
        if path.parent.name.lower() != "stereo images":
            continue
        names = [f"{path.stem}-Disc-Avg.png", f"{path.stem}-Cup-Avg.png"]
        missing += [f"Average_masks/{name}" for name in names if name.lower() not in masks]
        labels = tuple(masks.get(name.lower(), Path(name)) for name in names)
        cases.append(Case("RIM-ONE-r3", path.stem, _subject(path.stem), path, labels))
    check_missing("RIM-ONE-r3", missing, what="masks")
    return cases


def _plan_refuge(source: Path) -> list[Case]:
    """Plan REFUGE: its training and its validation set came from two cameras, hence two sites."""
    masks = {p.stem: p for p in find_files(source, ".bmp") if "Disc_Cup_Masks" in p.parts}
    cases, missing = [], []
    for path in find_files(source, ".jpg"):
        if not re.fullmatch(r"[gnV]\d{4}", path.stem):
            continue
        site = "REFUGE-val" if path.stem.startswith("V") else "REFUGE-train"
        if path.stem not in masks:
            missing.append(f"Disc_Cup_Masks/{path.stem}.bmp")
            continue
        cases.append(Case(site, path.stem, path.stem, path, (masks[path.stem],)))
    check_missing("REFUGE", missing, what="masks")
    return cases


def _convert(case: Case, image_file: Path, label_file: Path) -> Iterable[str]:
    """Write the square around the disc, and its label."""
    remarks = []
    image, pictures = read_pictures(case)
    if len(pictures) == 1:
        label = _from_gray(pictures[0], case)
    else:
        height, width = image.shape[:2]
        if case.site == "Drishti-GS" and pictures[0].shape != (height, width):
            # Its soft maps are some pixels smaller than its photographs.
            pictures = [_resize(p, width, height) for p in pictures]
            remarks.append("the label was stretched to the size of its image")
        label = _from_pair(pictures[0], pictures[1], case)
    check_same_size(image, label, case)
    if case.site == "RIM-ONE-r3" and len(pictures) == 2 and image.shape[1] > image.shape[0]:
        half = image.shape[1] // 2
        image, label = image[:, :half], label[:, :half]
        remarks.append("the left image of the stereo pair was taken")
    if not label.any():
        raise DatasetError(f"{case.labels[0]} shows no optic disc: download it again")
    window = _square_around(label > 0)
    if label[window].shape != label.shape:
        remarks.append(f"cropped to {ROI_SIDE} x {ROI_SIDE} pixels around the disc")
    write_pictures(
        np.ascontiguousarray(image[window]),
        np.ascontiguousarray(label[window]),
        image_file,
        label_file,
    )
    return remarks


def _from_gray(mask: np.ndarray, case: Case) -> np.ndarray:
    """Label of a mask in gray: 0 cup, 128 rim, 255 background.

    The thresholds lie between the three, as resized masks have values around them.
    """
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if np.median(border) <= 200:
        raise DatasetError(
            f"{case.labels[0]} should be white (255) around the disc, gray (128) on the rim and "
            f"black (0) in the cup; its border is {int(np.median(border))}: "
            "check that it is the mask as published"
        )
    label = np.zeros(mask.shape, dtype=np.uint8)
    label[mask <= 200] = RIM
    label[mask <= 50] = CUP
    return label


def _from_pair(disc: np.ndarray, cup: np.ndarray, case: Case) -> np.ndarray:
    """Label of two masks, of which at least half of the experts agree (>= 128)."""
    check_same_size(disc, cup, case)
    label = np.zeros(disc.shape, dtype=np.uint8)
    label[disc >= 128] = RIM
    label[cup >= 128] = CUP
    return label


def _resize(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """Stretch a mask to another size, nearest neighbor; (height, width)."""
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def _square_around(disc: np.ndarray) -> tuple[slice, slice]:
    """The square of `ROI_SIDE` around the disc, moved inside the image where it leaves it."""
    window = []
    for axis in (0, 1):
        hits = np.flatnonzero(disc.any(axis=1 - axis))
        side = min(ROI_SIDE, disc.shape[axis])
        start = (int(hits[0]) + int(hits[-1]) + 1 - side) // 2
        start = min(max(start, 0), disc.shape[axis] - side)
        window.append(slice(start, start + side))
    return window[0], window[1]


OPTIC_DISC_CUP = Importer("four sites of optic disc and cup", ".png", _plan, _convert)
