"""What killed processes of a kit left in it, and the folders of jobs that are long over; swept at its start."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from fl_bridge.kit_policy import JOB_ID
from fl_bridge.server_kit import BANK, KEYS, STATE
from iopfl.base.files import sweep
from iopfl.base.private_files import make_private

logger = logging.getLogger(__name__)

TEMPORARY = "tmp"
"""Folder of a kit in which its processes put what is temporary: messages on their way, weights, a bank."""
_KEPT_JOBS = 10
"""FLARE keeps each job's folder for ever; a site's own log of a job lies there."""


def sweep_kit(kit: Path) -> int:
    """Remove what is left in a kit; whoever calls holds its lock, so that no process of FLARE's is about.

    Returns:
        How many files and folders were removed.
    """
    count = sweep(kit) + sum(sweep(kit / name, deep=True) for name in ("local", "startup", STATE, BANK, KEYS))
    for path in (kit / TEMPORARY).glob("*"):
        count += _remove(path)
    make_private(kit / TEMPORARY)
    for folder in (kit, kit / "flare" / "jobs", kit / "flare" / "snapshots"):
        jobs = [path for path in folder.glob("*") if JOB_ID.fullmatch(path.name) and path.is_dir()]
        jobs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        count += sum(_remove(path) for path in jobs[_KEPT_JOBS:])
    if count:
        logger.info("removed %d leftover(s) of processes that were killed, and of old jobs", count)
    return count


def _remove(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return not path.exists()
