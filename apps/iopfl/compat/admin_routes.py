"""Anybody may reload the app, or exchange and delete a model's file.

Defect: `app.py:114` `POST /reload` asks for no token even when tokens are on; `endpoints/model.py:110`
and `:120` let annotators replace a model, past the signatures that a bank's models carry.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.
"""

from __future__ import annotations

from iopfl.compat._patching import once

CHANGES_MODELS = {"PUT", "DELETE"}


@once
def apply() -> None:
    """Remove these routes."""
    from monailabel.endpoints import model

    model.router.routes[:] = [route for route in model.router.routes if not CHANGES_MODELS & set(route.methods)]

    from monailabel.app import app

    app.router.routes[:] = [r for r in app.router.routes if getattr(r, "path", None) != "/reload"]
