"""What killed processes left in the folders of a label server."""

from __future__ import annotations

import logging
from pathlib import Path

from iopfl.base.files import sweep, temporary_home
from iopfl.lib.settings import AppSettings

logger = logging.getLogger(__name__)

_LARGE = ("pacs", "dimse", "logs")
"""Folders of the state that hold many files: in the cache, the listener's and the log's own names are looked at."""


def sweep_leftovers(settings: AppSettings, studies: Path | None) -> int:
    """Remove half-written files, staging copies of banks and uploads of processes that are gone.

    Args:
        settings: say where state and banks are.
        studies: folder of the images; None = they are in a PACS.

    Returns:
        How many files and folders were removed.
    """
    state = settings.state
    count = sweep(state) + sweep(temporary_home())
    for folder in (entry for entry in state.glob("*") if entry.is_dir() and entry.name not in _LARGE):
        count += sweep(folder, deep=True)
    for cache in state.glob("pacs/*"):
        count += sweep(cache) + sweep(cache / "facts")
    for bank in settings.banks:
        count += sweep(bank, deep=True) + sweep(bank.parent)
    if studies is not None:
        count += sweep(studies) + sweep(studies / "labels", deep=True)
    if count:
        logger.info("removed %d leftover(s) of processes that were killed", count)
    return count
