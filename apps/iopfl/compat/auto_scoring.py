"""Every `Next Sample` queues another run of all scoring methods, each a process of its own.

Defect: `interfaces/app.py:464` (and `:427`, `:473`) scores anew at each sample, with a queue that
has no bound; a process takes seconds to start and about a gigabyte.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.
"""

from __future__ import annotations

import functools
from typing import Any

from iopfl.compat._patching import once

UNFINISHED = ("SUBMITTED", "RUNNING")


@once
def apply() -> None:
    """Queue a scoring run only if none waits or runs."""
    from monailabel.interfaces.app import MONAILabelApp
    from monailabel.utils.async_tasks import utils

    original = MONAILabelApp.async_scoring

    @functools.wraps(original)
    def async_scoring(self: Any, method: str | None, params: Any = None) -> Any:
        if method is None and any(task["status"] in UNFINISHED for task in utils.tasks("scoring")):
            return {}
        return original(self, method, params)

    MONAILabelApp.async_scoring = async_scoring
