"""Sample data: phantoms of several hospitals, and importers of public data sets.

Both write site folders as the label server reads them; see
`sample-datasets/README.md`.
"""

from __future__ import annotations

from typing import Any

from iopfl.datasets.importers import IMPORTERS, ImportSummary, import_dataset

__all__ = ["IMPORTERS", "ImportSummary", "import_dataset", "write_phantoms"]


def __getattr__(name: str) -> Any:
    """Import `write_phantoms` on first use: it needs MONAI, which takes seconds to load."""
    if name == "write_phantoms":
        from iopfl.datasets.phantom import write_phantoms

        return write_phantoms
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
