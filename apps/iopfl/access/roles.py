"""Who may use which of our routes: dependencies for routers, each a role and those above it.

A reviewer may do all that an annotator may, an admin all that a reviewer may. What a token or a
cookie says is read in `access.identity`; without authentication everybody may do everything.
"""

from __future__ import annotations

from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC

FEDERATION_ROLE = "federation"
"""Role of a bridge's token: it opens the federation's routes and nothing else."""

OUTSIDE_ROLE = "outside"
"""Role of an outside site's token: it gets the banks that are served, and nothing else."""

for_federation = RBAC(FEDERATION_ROLE)
for_banks = RBAC([OUTSIDE_ROLE, settings.MONAI_LABEL_AUTH_ROLE_USER])
"""Get a bank."""
for_user = RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER)
"""Look, and have images segmented."""
for_annotator = RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR)
"""Submit labels."""
for_reviewer = RBAC(settings.MONAI_LABEL_AUTH_ROLE_REVIEWER)
"""Choose which label of an image is the final one."""
for_admin = RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN)
"""Look after the server."""


def implied_roles(roles: list[str]) -> list[str]:
    """MONAI Label's roles, and those below each of them."""
    ladder = [
        settings.MONAI_LABEL_AUTH_ROLE_USER,
        settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
        settings.MONAI_LABEL_AUTH_ROLE_REVIEWER,
        settings.MONAI_LABEL_AUTH_ROLE_ADMIN,
    ]
    highest = max((ladder.index(role) for role in roles if role in ladder), default=-1)
    return list(dict.fromkeys([*ladder[: highest + 1], *roles]))
