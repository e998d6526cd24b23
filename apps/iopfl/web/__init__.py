"""What a browser shows: our page, its routes, pictures of results, and the report of a benchmark.

`pictures` and `report` know nothing of the label server; `router` does.
"""

from __future__ import annotations

from typing import Any

__all__ = ["router"]


def __getattr__(name: str) -> Any:
    """Import `router` on first use: it needs MONAI Label, which a report does not."""
    if name == "router":
        from iopfl.web.routes import router

        return router
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
