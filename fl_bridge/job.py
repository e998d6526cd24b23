"""The FLARE job of a federation: configuration alone, no code.

Every site has this package installed and allows its classes
(`class_allow_list`), so a job is a few JSON files that a site can read before it accepts them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.job_config.api import FedJob

from fl_bridge.controller import RoundController
from fl_bridge.executor import SiteExecutor
from fl_bridge.persistor import FederationPersistor
from fl_bridge.trainer import SiteTrainer
from iopfl.core.errors import ConfigError

PACKAGES = ("fl_bridge",)
"""Installed packages whose classes a job names."""


def build_job(
    controller: RoundController,
    *,
    state: Path,
    trainers: Mapping[str, SiteTrainer],
    packages: Sequence[str] = PACKAGES,
    name: str = "iopfl",
) -> FedJob:
    """Build the job that the simulator runs and that production submits.

    Args:
        controller: with the rounds to reach, and the limits.
        state: the federation's state folder, on the server.
        trainers: FLARE client name -> what trains there.
        packages: installed packages whose code the job must not carry along.
        name: of the job.

    Raises:
        ConfigError: a path with a brace in it, which FLARE takes for a variable.
    """
    job = FedJob(name=name, min_clients=1)
    job.set_app_packages(list(packages))
    job.to_server(controller)
    job.to_server(FederationPersistor(flare_text(state)), id="persistor")
    job.to_server({"server": {"task_request_interval": 0.5}})
    for client, trainer in trainers.items():
        job.to(SiteExecutor(), client, tasks=["*"])
        job.to(trainer, client, id="trainer")
    return job


def write_site_policy(folder: Path, *, packages: Sequence[str] = PACKAGES) -> Path:
    """Write the `resources.json` that allows the classes of a job, into a FLARE `local` folder."""
    path = folder / "resources.json"
    prefixes = [f"{package}." for package in packages]
    policy: dict[str, Any] = {"format_version": 2, "class_allow_list": [*DEFAULT_CLASS_ALLOW_LIST, *prefixes]}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(policy, indent=1), encoding="utf-8")
    return path


def flare_text(path: Path) -> str:
    """An absolute path as a FLARE configuration can hold it.

    Raises:
        ConfigError: it has a brace in it.
    """
    text = str(path.absolute())
    if "{" in text or "}" in text:
        raise ConfigError(f"{text}: expected a path without braces, which FLARE takes for variables: rename the folder")
    return text
