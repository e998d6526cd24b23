"""Importers of public data sets, as people download and unpack them.

An importer has two halves: `plan` finds the files, pairs images with labels
and refuses what is incomplete, before anything is written; `convert` writes
one pair. Adding a data set is one `Importer` in `IMPORTERS`, and its name in `IMPORTABLE`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from iopfl.base.errors import DatasetError
from iopfl.datasets import IMPORTABLE
from iopfl.datasets.importers.common import Case, Importer
from iopfl.datasets.importers.fundus import OPTIC_DISC_CUP
from iopfl.datasets.importers.prostate import PROSTATE
from iopfl.datasets.importers.vessel import CHASE_DB1, DRIVE, HRF, STARE
from iopfl.datasets.site_folders import (
    check_free,
    make_site,
    split_by_subject,
    staged,
    write_splits,
)

logger = logging.getLogger(__name__)

IMPORTERS: dict[str, Importer] = dict(
    zip(IMPORTABLE, (PROSTATE, OPTIC_DISC_CUP, DRIVE, CHASE_DB1, STARE, HRF), strict=True)
)
"""What `import_dataset` knows, by name."""


@dataclass(frozen=True)
class SiteSummary:
    """What became of one site: images, subjects, and how the images are split."""

    site: str
    images: int
    subjects: int
    train: int
    test: int


@dataclass(frozen=True)
class ImportSummary:
    """What an import wrote, and what a reader should know about it.

    Attributes:
        name: the name of the importer.
        target: folder of the site folders.
        sites: one entry per site.
        notes: what was changed, left out or not found, one sentence each.
    """

    name: str
    target: Path
    sites: tuple[SiteSummary, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{s.site}: {s.images} images of {s.subjects} subjects, {s.train} train, {s.test} test" for s in self.sites
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def import_dataset(
    name: str,
    source: Path,
    target: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> ImportSummary:
    """Turn a downloaded data set into site folders, all of it or nothing.

    Args:
        name: one of `IMPORTERS`.
        source: the unpacked download, or a folder that holds it.
        target: where the site folders go. It may hold other sites already:
            they stay, and `splits.json` is merged.
        progress: called with images done and images in all.

    Returns:
        What was written.

    Raises:
        DatasetError: an unknown name, files missing or unreadable, a site that
            is already in `target`, or a disk that refuses.
    """
    if name not in IMPORTERS:
        raise DatasetError(f"there is no importer {name!r}: choose from {', '.join(IMPORTERS)}")
    importer = IMPORTERS[name]
    source, target = Path(source), Path(target)
    if not source.is_dir():
        hint = "unpack it first" if source.is_file() else "check the path"
        raise DatasetError(f"{source} should be the folder of the unpacked download: {hint}")

    cases, notes = importer.plan(source)
    by_site: dict[str, list[Case]] = {}
    for case in cases:
        by_site.setdefault(case.site, []).append(case)
    check_free(target, list(by_site))
    for site, members in by_site.items():
        _check_stems(site, members)

    remarks: Counter[tuple[str, str]] = Counter()
    splits, summaries = {}, []
    with staged(target) as partial:
        done = 0
        for site, members in by_site.items():
            images, labels = make_site(partial, site)
            for case in members:
                file_name = case.stem + importer.extension
                for remark in importer.convert(case, images / file_name, labels / file_name):
                    remarks[site, remark] += 1
                done += 1
                if progress:
                    progress(done, len(cases))
            splits[site], moved = _split(site, members)
            if moved:
                notes.append(
                    f"{site}: {moved} images moved from train to test, because the official "
                    "split has other images of the same subjects there"
                )
            summaries.append(
                SiteSummary(
                    site,
                    len(members),
                    len({case.subject for case in members}),
                    len(splits[site]["train"]),
                    len(splits[site]["test"]),
                )
            )
        write_splits(partial, splits)
    notes += [f"{site}: {text} ({count} images)" for (site, text), count in remarks.items()]
    logger.info("imported %d images of %d sites by %s", len(cases), len(by_site), name)
    return ImportSummary(name, target, tuple(summaries), tuple(notes))


def _check_stems(site: str, cases: list[Case]) -> None:
    """Refuse two images that would get the same file name."""
    repeated = [stem for stem, count in Counter(c.stem for c in cases).items() if count > 1]
    if repeated:
        raise DatasetError(
            f"{site}: {len(repeated)} file names occur more than once ({', '.join(repeated[:5])}): "
            "keep one copy of the data set in the folder"
        )


def _split(site: str, cases: list[Case]) -> tuple[dict[str, list[str]], int]:
    """Split a site: officially where the data set does, else by subject.

    An official split that has a subject on both sides gives way to the rule
    that no subject is: such a subject is a test subject.

    Returns:
        The split, and how many images that rule moved.
    """
    if any(case.part is None for case in cases):
        return split_by_subject({case.stem: case.subject for case in cases}, key=site), 0
    tested = {case.subject for case in cases if case.part == "test"}
    test = sorted(case.stem for case in cases if case.subject in tested)
    train = sorted(case.stem for case in cases if case.subject not in tested)
    return {"train": train, "test": test}, len(test) - sum(case.part == "test" for case in cases)
