"""What a series that came is, by its headers: an image or none, and whole or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom import Dataset

from iopfl.base.errors import SeriesError
from iopfl.dicomio.files import read_dataset, reading
from iopfl.dicomio.refusals import choose_header


def read_header(files: Sequence[Path]) -> Dataset:
    """The header that speaks for a series: of the first instance that is an image.

    Raises:
        SeriesError: none is, or one before it cannot be read.
    """
    with reading("an instance's header"):
        return choose_header(read_dataset(path, pixels=False) or Dataset() for path in files)


def count_missing(header: Dataset, came: int) -> int:
    """Instances that did not come, of as many as a series says it has; a single one counts for nothing: many miscount.

    Args:
        header: the header of one of them.
        came: how many did.

    Raises:
        SeriesError: it is more than one.
    """
    said = str(header.get("NumberOfSeriesRelatedInstances") or "")
    missing = max(0, int(said) - came) if said.isdecimal() else 0
    if missing > 1:
        raise SeriesError(f"partial: {came} of {said} instances came; send the rest")
    return missing
