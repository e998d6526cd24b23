"""The server's kit: where what lies in it, and the federation's settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from fl_bridge.federation_file import FederationFile
from fl_bridge.site_policy import SitePolicy
from iopfl.base.errors import ConfigError
from iopfl.base.files import write_bytes
from iopfl.core.task import Task

ADMIN, ADMIN_FOLDER = "admin@consortium.org", "admin"
SETTINGS = "federation.json"
STATE, BANK, KEYS, STOP, LOCK = "state", "bank", "keys", "stop", "supervisor.lock"
_FAILED_JOB = "failed-job.json"
"""In the state folder: the last job that a site's word ended, and which site's."""


def read_settings(kit: Path) -> FederationFile:
    """The federation's settings, from the server's kit.

    Raises:
        ConfigError: it is not the server's kit.
    """
    try:
        values = json.loads((kit / SETTINGS).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{kit}: expected the kit of a federation's server, without {SETTINGS} it is none") from error
    sites = {
        site: SitePolicy.from_dict(policy, what=f"{kit / SETTINGS}: {site}")
        for site, policy in values.pop("sites").items()
    }
    return FederationFile(**{**values, "task": Task.from_dict(values["task"]), "sites": sites})


def write_settings(kit: Path, federation: FederationFile) -> None:
    """Write what `read_settings` reads."""
    sites = {site: asdict(policy) for site, policy in federation.sites.items()}
    values = {**vars(federation), "task": federation.task.to_dict(), "sites": sites}
    write_bytes(kit / SETTINGS, json.dumps(values, indent=1).encode())


def note_failed_job(kit: Path, job: str, client: str) -> None:
    """Note which client's word ended a job; of several, the first."""
    if read_failed_job(kit, job) is None:
        write_bytes(kit / STATE / _FAILED_JOB, json.dumps({"job": job, "client": client}).encode())


def read_failed_job(kit: Path, job: str) -> str | None:
    """The client whose word ended a job; None where none did."""
    try:
        found = json.loads((kit / STATE / _FAILED_JOB).read_bytes())
        return found["client"] if found["job"] == job else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
