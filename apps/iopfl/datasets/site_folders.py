"""Writing site folders so that they are whole or not there.

A site folder is MONAI Label's local datastore: images at the top and
`labels/final/<same file name>` beneath. `splits.json` lies next to the sites:
`{"SITE": {"train": [stem, ...], "test": [stem, ...]}}`, disjoint by subject.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np

from iopfl.base.errors import DatasetError

SPLITS_FILE = "splits.json"
LABELS = Path("labels") / "final"
TRAIN_SHARE = 0.6
"""Share of subjects that train, where a data set has no split of its own."""

Splits = dict[str, dict[str, list[str]]]


def split_by_subject(subjects: Mapping[str, str], *, seed: int = 0, key: str = "") -> dict:
    """Split image stems into train and test so that no subject is in both.

    Args:
        subjects: image stem to subject.
        seed: another seed, another split.
        key: name of the site, so that sites are not split alike.

    Returns:
        `{"train": [stem, ...], "test": [stem, ...]}`, each sorted.

    >>> split_by_subject({"01L": "01", "01R": "01", "02L": "02", "02R": "02"})
    {'train': ['01L', '01R'], 'test': ['02L', '02R']}
    """
    names = sorted(set(subjects.values()))
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    order = rng.permutation(len(names))
    count = max(1, round(TRAIN_SHARE * len(names)))
    chosen = {names[i] for i in order[:count]}
    return {
        "train": sorted(stem for stem, subject in subjects.items() if subject in chosen),
        "test": sorted(stem for stem, subject in subjects.items() if subject not in chosen),
    }


def read_splits(folder: Path) -> Splits:
    """Read `splits.json` of a folder of sites; without one, no splits.

    Raises:
        DatasetError: the file is there but is not a table of sites.
    """
    path = Path(folder) / SPLITS_FILE
    if not path.exists():
        return {}
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} cannot be read as JSON ({error}): repair or remove it") from error
    if not isinstance(splits, dict) or not all(isinstance(v, dict) for v in splits.values()):
        raise DatasetError(f"{path} should be {{site: {{train: [...], test: [...]}}}} and is not: repair or remove it")
    return splits


def write_splits(folder: Path, splits: Splits) -> None:
    """Write `splits.json`: to a temporary name, then renamed."""
    path = Path(folder) / SPLITS_FILE
    partial = path.with_name(f".{SPLITS_FILE}.partial")
    partial.write_text(json.dumps(splits, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def make_site(folder: Path, site: str) -> tuple[Path, Path]:
    """Make an empty site folder; return where its images and labels go."""
    images = folder / site
    labels = images / LABELS
    labels.mkdir(parents=True, exist_ok=True)
    return images, labels


def make_volume(voxels: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """Make a NIfTI volume whose header says where it lies and nothing else.

    Args:
        voxels: (X, Y, Z), of the type to be stored.
        affine: voxel to RAS mm, (4, 4); written as both qform and sform, since
            readers differ in which they take.
    """
    volume = nib.Nifti1Image(voxels, affine)
    volume.set_qform(affine, code="scanner")
    volume.set_sform(affine, code="scanner")
    volume.header.set_xyzt_units("mm", "sec")
    return volume


def check_free(target: Path, sites: list[str]) -> None:
    """Refuse to write over a site that is already there.

    Raises:
        DatasetError: one of the sites exists in `target`, or `target` is a file.
    """
    if target.exists() and not target.is_dir():
        raise DatasetError(f"{target} is a file, a folder was expected: choose another target")
    taken = [site for site in sites if (target / site).exists()]
    if taken:
        raise DatasetError(f"{target} already holds {', '.join(taken)}: remove it or choose another target")


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a temporary folder to write sites into; on success move them to `target`.

    A target that is not there yet appears whole, by one rename. In one that
    is, other sites stay and `splits.json` is merged. After an error nothing
    new is left, in `target` or beside it.

    Raises:
        DatasetError: the disk refused (full, read-only, no permission).
    """
    target = Path(target).absolute()
    made = [p for p in target.parents if not p.exists()]
    moved: list[Path] = []
    partial: Path | None = None
    try:
        # Inside a target that exists: it may be a mounted volume, and a rename
        # does not cross file systems.
        home = target if target.is_dir() else target.parent
        home.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=home))
        whole = partial / target.name
        whole.mkdir()
        yield whole
        if target.exists():
            _merge(whole, target, moved)
        else:
            whole.rename(target)
    except BaseException as error:
        for site in moved:
            shutil.rmtree(site, ignore_errors=True)
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError):
            raise DatasetError(
                f"cannot write to {target} ({error.strerror or error}): free space or choose another target"
            ) from error
        raise
    shutil.rmtree(partial, ignore_errors=True)


def _merge(whole: Path, target: Path, moved: list[Path]) -> None:
    """Move sites into a folder of sites; `moved` tells how far it came."""
    sites = sorted(p for p in whole.iterdir() if p.is_dir())
    check_free(target, [p.name for p in sites])
    splits = {**read_splits(target), **read_splits(whole)}
    for site in sites:
        site.rename(target / site.name)
        moved.append(target / site.name)
    write_splits(target, splits)
