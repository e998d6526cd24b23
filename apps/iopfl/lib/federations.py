"""Which federations a task takes part in: few, as each keeps several sets of weights on the disk.

A token of role `federation` can name any. The first that name themselves are taken in, up to a limit, unless the
administrator says which ones there are; those in whose rounds nothing was ever trained make room after a while.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection
from pathlib import Path

from iopfl.base.errors import FederationsError
from iopfl.core.round_files import LOCAL, federation_folder

logger = logging.getLogger(__name__)

IDLE_SECONDS = 24 * 3600.0
"""How long weights that nothing was trained from are kept."""


def check_federation(folder: Path, federation: str, *, known: Collection[str], limit: int) -> None:
    """Check that a task takes part in a federation, or may begin to; called before its weights are taken in.

    Args:
        folder: the folder of the task's federations.
        federation: the one that asks.
        known: ids of those that the administrator named; empty = whichever come first.
        limit: how many there may be.

    Raises:
        FederationsError: it is another one, or one too many.
        ConfigError: the id could be a path.
    """
    if known and federation not in known:
        raise FederationsError("expected a federation that this site takes part in: its administrator sets which")
    wanted = federation_folder(folder, federation)
    if wanted.is_dir():
        return
    for idle in [path for path in _list(folder) if _is_idle(path)]:
        shutil.rmtree(idle, ignore_errors=True)
        logger.info("removed the weights of federation %s, from which nothing was trained here", idle.name)
    if len(_list(folder)) >= limit:
        raise FederationsError(
            f"expected no more than {limit} federations of this task, this would be one more: the site's administrator "
            "raises max_federations, or removes folders in rounds/ of those that have ended"
        )


def _list(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _is_idle(folder: Path) -> bool:
    """Whether nothing was trained in a federation, and nothing came for a while."""
    if (folder / LOCAL).exists():
        return False
    last = max((path.stat().st_mtime for path in [folder, *folder.iterdir()]), default=0.0)
    return time.time() - last > IDLE_SECONDS
