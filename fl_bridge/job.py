"""The FLARE job of a federation: configuration alone, no code.

Every site has this package installed and allows a few of its classes (`kit_policy`),
so a job is a few JSON files that a site reads before it accepts them (`admission`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvflare.apis.filter import Filter
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.job_config.api import FedJob
from nvflare.job_config.defs import FilterType

from fl_bridge.controller import RoundController
from fl_bridge.exchange import TASK_PUBLISH, TASK_SHARE, TASK_TRAIN
from fl_bridge.executor import SiteExecutor
from fl_bridge.kit_policy import TRAINER
from fl_bridge.label_server_trainer import LabelServerTrainer
from fl_bridge.metrics import MetricsReceiver
from fl_bridge.persistor import FederationPersistor
from fl_bridge.trainer import SiteTrainer
from iopfl.base.errors import ConfigError

PACKAGES = ("fl_bridge",)
"""Installed packages whose classes a job names."""
_WEIGHTS_TASKS = [TASK_TRAIN, TASK_SHARE]
_FLARE_PACKAGES = ("nvflare.app_opt.pt.quantization",)
"""FLARE's own that its default list leaves out."""


@dataclass(frozen=True)
class JobOptions:
    """What FLARE's own parts add to a job.

    Attributes:
        quantize: `float16` sends weights in half precision, both ways.
        update_percentile: entries of an update that stay at the site, the smallest so many percent.
        metrics: folder for TensorBoard; None = none written.
        result_filters: FLARE's or one's own, which see everything that leaves a site.
    """

    quantize: str = "none"
    update_percentile: int = 0
    metrics: Path | None = None
    result_filters: Sequence[Filter] = ()


class _Job(FedJob):
    """FLARE's, which calls each class as our modules are called now."""

    def export_job(self, job_root: str) -> None:
        """Write the job's files, its trainer called as all sites know it."""
        super().export_job(job_root)
        now = f"{LabelServerTrainer.__module__}.{LabelServerTrainer.__qualname__}"
        for path in Path(job_root).rglob("config_fed_client.json"):
            path.write_text(path.read_text(encoding="utf-8").replace(f'"{now}"', f'"{TRAINER}"'), encoding="utf-8")


def build_job(
    controller: RoundController,
    *,
    state: Path,
    trainers: Mapping[str, SiteTrainer],
    packages: Sequence[str] = PACKAGES,
    name: str = "iopfl",
    options: JobOptions | None = None,
) -> FedJob:
    """Build the job that the simulator runs and that production submits.

    Args:
        controller: with the rounds to reach, and the limits.
        state: the federation's state folder, on the server.
        trainers: FLARE client name -> what trains there.
        packages: installed packages whose code the job must not carry along.
        name: the name of the job.
        options: what FLARE's own parts add.

    Raises:
        ConfigError: a path with a brace in it, which FLARE takes for a variable.
    """
    options = options or JobOptions()
    if options.quantize == "float16":  # imports bitsandbytes, and with it much that no other job needs
        from nvflare.app_opt.pt.quantization.dequantizer import ModelDequantizer
        from nvflare.app_opt.pt.quantization.quantizer import ModelQuantizer
    job = _Job(name=name, min_clients=1)
    job.set_app_packages(list(packages))
    job.to_server(controller)
    job.to_server(FederationPersistor(flare_text(state)), id="persistor")
    job.to_server({"server": {"task_request_interval": 0.5}})
    for client, trainer in trainers.items():
        job.to(SiteExecutor(), client, tasks=["*"])
        job.to(trainer, client, id="trainer")
        if options.update_percentile:  # of updates alone: it would clip whole weights too
            privacy = PercentilePrivacy(percentile=options.update_percentile)
            job.to(privacy, client, filter_type=FilterType.TASK_RESULT, tasks=[TASK_TRAIN])
        for privacy in options.result_filters:
            job.to(privacy, client, filter_type=FilterType.TASK_RESULT, tasks=[*_WEIGHTS_TASKS, TASK_PUBLISH])
        if options.quantize == "float16":
            job.to(ModelQuantizer("float16"), client, filter_type=FilterType.TASK_RESULT, tasks=_WEIGHTS_TASKS)
            job.to(ModelDequantizer(), client, filter_type=FilterType.TASK_DATA, tasks=_WEIGHTS_TASKS)
    if options.quantize == "float16":
        job.to_server(ModelQuantizer("float16"), filter_type=FilterType.TASK_DATA, tasks=_WEIGHTS_TASKS)
        job.to_server(ModelDequantizer(), filter_type=FilterType.TASK_RESULT, tasks=_WEIGHTS_TASKS)
    if options.metrics is not None:
        job.to_server(MetricsReceiver(flare_text(options.metrics)), id="metrics")
    return job


def write_simulator_policy(folder: Path, *, packages: Sequence[str] = PACKAGES) -> Path:
    """Write the `resources.json` that allows the classes of a job, into the simulator's `local` folder.

    There a job is one's own. Between hospitals `kit_policy` allows exact classes.
    """
    path = folder / "resources.json"
    allowed = [*DEFAULT_CLASS_ALLOW_LIST, *(f"{package}." for package in (*packages, *_FLARE_PACKAGES))]
    policy: dict[str, Any] = {"format_version": 2, "class_allow_list": allowed}
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
