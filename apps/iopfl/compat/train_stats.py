"""One bad number, or a file cut short, in `train_stats.json` and no client can connect.

Defect: `tasks/train/handler.py:75` writes the file in place and with NaN in it;
`tasks/train/basic_train.py:421` reads it for every `/info`, which then answers 500.
Upstream: not reported.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from iopfl.base.finite import finite
from iopfl.compat._patching import once

logger = logging.getLogger(__name__)

_NEEDED = ("best_metric",)
"""3D Slicer computes with these as soon as it connects, and fails on None."""


def read_stats(path: str | None) -> dict[str, Any]:
    """Read a statistics file; one that cannot be read counts as none."""
    if not path or not Path(path).exists():
        return {}
    try:
        stats = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        logger.warning("training statistics are ignored: %s cannot be read (%s)", path, error)
        return {}
    return finite(stats, zeros=_NEEDED) if isinstance(stats, dict) else {}


@once
def apply() -> None:
    """Write the file whole and finite, read it tolerantly, answer `/info` finite."""
    from monailabel.endpoints import info
    from monailabel.tasks.train import handler
    from monailabel.tasks.train.basic_train import BasicTrainTask

    prepare_stats = handler.prepare_stats
    handler.prepare_stats = lambda *args: finite(prepare_stats(*args), zeros=_NEEDED)
    BasicTrainTask.stats = lambda self: read_stats(self._stats_path)
    # The handler copies its own file over the one that /info reads.
    handler.shutil = _AtomicCopy()

    app_info = info.app_info
    info.app_info = functools.wraps(app_info)(lambda: finite(app_info(), zeros=_NEEDED))


class _AtomicCopy:
    """`shutil`, as far as the handler uses it, with a copy that readers see whole or not at all."""

    @staticmethod
    def copy(source: str, destination: str) -> str:
        temporary = Path(f"{destination}.{os.getpid()}.tmp")
        shutil.copy(source, temporary)
        temporary.replace(destination)
        return destination
