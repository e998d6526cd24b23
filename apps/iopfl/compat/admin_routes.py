"""Anybody may reload the app, or exchange and delete a model's file; annotators queue scoring, and stop others'.

Defect: `app.py:114` `POST /reload` asks for no token even when tokens are on; `endpoints/model.py:110`
and `:120` let annotators replace a model, past the signatures that a bank's models carry; `endpoints/scoring.py:76`,
`:85` and `:94` let them start processes without a bound, and end what an administrator began, as no training does.
Upstream: not reported.
"""

from __future__ import annotations

from iopfl.compat._patching import once

CHANGES_MODELS = {"PUT", "DELETE"}
STARTS_OR_STOPS = {"POST", "DELETE"}


@once
def apply() -> None:
    """Remove these routes, and leave scoring to who may train."""
    from monailabel.endpoints import model

    model.router.routes[:] = [route for route in model.router.routes if not CHANGES_MODELS & set(route.methods)]

    from monailabel.config import settings
    from monailabel.endpoints import scoring
    from monailabel.endpoints.user.auth import RBAC

    for route in scoring.router.routes:
        if STARTS_OR_STOPS & set(route.methods):  # type: ignore[attr-defined]
            for dependency in route.dependant.dependencies:  # type: ignore[attr-defined]
                if isinstance(dependency.call, RBAC):
                    dependency.call.roles = settings.MONAI_LABEL_AUTH_ROLE_ADMIN

    from monailabel.app import app

    app.router.routes[:] = [r for r in app.router.routes if getattr(r, "path", None) != "/reload"]
