"""Who may use which of our routes."""

from __future__ import annotations

from monailabel.endpoints.user.auth import RBAC

FEDERATION_ROLE = "federation"
"""Role of a bridge's token: it opens the federation's routes and nothing else."""

for_federation = RBAC(FEDERATION_ROLE)
