"""Training fails at its start, because mlflow refuses the file store it is given by default.

Defect: `tasks/train/basic_train.py:170` tracks with mlflow by default, into a folder (`:526`);
the handler of MONAI 1.6 refuses such a store.
Upstream: not reported.
"""

from __future__ import annotations

import functools
from typing import Any

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Track nothing, unless somebody names a tracking server or data base."""
    from monailabel.tasks.train.basic_train import BasicTrainTask

    original = BasicTrainTask.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if not self._tracking_uri:
            self._tracking = None
            self._config["tracking"] = ["None", "mlflow"]

    BasicTrainTask.__init__ = init
