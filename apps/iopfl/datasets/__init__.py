"""Sample data: phantoms of several hospitals, and importers of public data sets.

Both write site folders as the label server reads them; see
`sample-datasets/README.md`.
"""

from __future__ import annotations

import importlib
from typing import Any

IMPORTABLE = ("prostate", "optic_disc_cup", "drive", "chase_db1", "stare", "hrf")
"""Names of the data sets that `import_dataset` knows."""
_HOMES = {"ImportSummary": "importers", "import_dataset": "importers", "write_phantoms": "phantom"}

__all__ = ["IMPORTABLE", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import on first use: readers of images, and MONAI, take seconds to load."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
