"""Site folders: images, labels and the subject-level split.

A site folder is MONAI Label's local datastore as it is: images at the top,
`labels/final/<same file name>` beneath. `splits.json` beside the site folders,
if any, says which stems train and which test.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iopfl.base.errors import DatasetError
from iopfl.core.task import Task
from iopfl.images.headers import IMAGE_SUFFIXES
from iopfl.images.names import find_stem, is_image_name, rank_ending

LABEL_FOLDER = Path("labels", "final")
TEST_SHARE = 0.3
SPLITS = ("train", "validation", "test", "all")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One image of a site, with its label where there is one.

    Attributes:
        stem: the image's file name without its suffix.
        image: the image.
        label: its label.
        subject: whose image it is; empty = the task finds it in the stem.
    """

    stem: str
    image: Path
    label: Path | None = None
    subject: str = ""


def find_cases(site_folder: Path, *, labels: Path = LABEL_FOLDER) -> list[Case]:
    """All images of a site folder in order of name, each with its label if it has one.

    A label may have another suffix than its image (a PNG of a JPEG, a `.seg.nrrd` of 3D Slicer). Of several files
    of one stem one is taken, the same as on the server (`rank_ending`); a warning names the others.

    Raises:
        DatasetError: no such folder, or no image in it.
    """
    if not site_folder.is_dir():
        raise DatasetError(f"no folder {site_folder}: expected a site folder with images and {LABEL_FOLDER}/")
    images = _find_images(site_folder)
    if not images:
        raise DatasetError(f"{site_folder} holds no image: expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    label_folder = site_folder / labels
    found = _find_images(label_folder, of_labels=True) if label_folder.is_dir() else {}
    return [Case(stem, image, found.get(stem) or found.get(f"{stem}.seg")) for stem, image in sorted(images.items())]


def find_sites(folder: Path) -> list[str]:
    """Names of the site folders in a folder: those that hold images.

    Raises:
        DatasetError: no such folder, or no site in it.
    """
    if not folder.is_dir():
        raise DatasetError(f"no folder {folder}: expected a folder of site folders")
    sites = [entry.name for entry in sorted(folder.iterdir()) if _is_site(entry)]
    if not sites:
        raise DatasetError(f"{folder} holds no site folder: expected FOLDER/SITE/image and FOLDER/SITE/{LABEL_FOLDER}/")
    return sites


def split_cases(cases: Sequence[Case], task: Task, *, site_folder: Path) -> dict[str, list[Case]]:
    """Split a site's cases into train, validation and test, by subject.

    `splits.json` beside the site folder decides between train and test; a
    stem it does not name trains (a label drawn since). Without it, a
    deterministic share of the subjects tests. Validation is a fixed share of
    the subjects that train, the same in every round; it never holds a subject
    that trains or tests.

    Returns:
        Lists under `train`, `validation`, `test` and `all`.

    Raises:
        DatasetError: `splits.json` is not as documented, or puts a subject on both sides.
    """
    listed = _read_split(site_folder)
    subjects = {case.stem: case.subject or task.find_subject(case.stem) for case in cases}
    if listed is None:
        testing = _share_of(set(subjects.values()), TEST_SHARE, salt="test")
        test = {stem for stem, subject in subjects.items() if subject in testing}
    else:
        test = set(listed["test"])
    trained = {subject for stem, subject in subjects.items() if stem not in test}
    both = trained & {subjects.get(stem) or task.find_subject(stem) for stem in test}
    if both:
        raise DatasetError(
            f"splits.json: {len(both)} subject(s) of {site_folder.name} both train and test: keep a subject's "
            f"images on one side (the subject is found by {task.subject!r})"
        )
    validating = _share_of(trained, task.training.validation_share, salt="validation")
    split: dict[str, list[Case]] = {"train": [], "validation": [], "test": [], "all": list(cases)}
    for case in cases:
        inner = "validation" if subjects[case.stem] in validating else "train"
        split["test" if case.stem in test else inner].append(case)
    return split


def labeled(cases: Sequence[Case]) -> list[Case]:
    """Those with a label."""
    return [case for case in cases if case.label is not None]


def _is_site(folder: Path) -> bool:
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    return any(is_image_name(path.name) and path.is_file() for path in folder.iterdir())


def _find_images(folder: Path, *, of_labels: bool = False) -> dict[str, Path]:
    """Files by stem."""
    files: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if is_image_name(path.name) and path.is_file():
            files.setdefault(find_stem(path.name), []).append(path)
    for stem, paths in files.items():
        paths.sort(key=lambda path: rank_ending(path.name[len(stem) :], of_label=of_labels))
        if len(paths) > 1:
            others = ", ".join(path.name for path in paths[1:])
            logger.warning(
                "%s is taken for %s, not %s beside it: move away what is not meant",
                paths[0].name,
                "a label" if of_labels else "an image",
                others,
            )
    return {stem: paths[0] for stem, paths in files.items()}


def _share_of(subjects: set[str], share: float, *, salt: str) -> set[str]:
    """A fixed share of the subjects: the same whatever their order, and nearly the same when some are added."""
    if len(subjects) < 2 or share <= 0:
        return set()
    ranked = sorted(subjects, key=lambda subject: hashlib.sha256(f"{salt}/{subject}".encode()).hexdigest())
    return set(ranked[: min(max(1, round(share * len(subjects))), len(subjects) - 1)])


def _read_split(site_folder: Path) -> dict[str, list[str]] | None:
    path = site_folder.resolve().parent / "splits.json"
    if not path.is_file():
        return None
    expected = f'{path.name}: expected {{"SITE": {{"train": [stem, ...], "test": [stem, ...]}}}}'
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(f"{expected}, found no valid JSON: {error}") from error
    if not isinstance(splits, dict):
        raise DatasetError(f"{expected}, found {type(splits).__name__}")
    site = splits.get(site_folder.resolve().name)
    if site is None:
        return None
    sides = [site.get(side) for side in ("train", "test")] if isinstance(site, dict) else [None]
    if not all(isinstance(side, list) and all(isinstance(stem, str) for stem in side) for side in sides):
        raise DatasetError(f"{expected}, {site_folder.name} has no such lists")
    return site
