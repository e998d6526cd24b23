"""What FLARE may do with a kit: who may ask for what, and which classes a job may name.

Whoever runs the federation's server is not trusted with a site. A kit's own policy lies in `local/`, which FLARE
reads before anything that comes over the network, and which neither the server nor a job can replace.
`site_process` holds FLARE's processes to it even where a changed server would not ask, `admission` each job.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iopfl.base.errors import ConfigError
from iopfl.base.private_files import write_private

SERVER, SITE = "server", "site"
MARK = "FL_BRIDGE_KIT"
"""Environment variable by which a kit's processes are known, those included that outlive their parent."""
STARTUP = {SERVER: "fed_server.json", SITE: "fed_client.json"}
"""By which a kit of each role is known, in `startup/`."""

EXECUTOR = "fl_bridge.executor.SiteExecutor"
TRAINER = f"{__package__}.label_server.LabelServerTrainer"
"""As jobs call it: sites of one federation need not have the same version, whatever our modules are called."""
PERCENTILE = "nvflare.app_common.filters.percentile_privacy.PercentilePrivacy"
QUANTIZER = "nvflare.app_opt.pt.quantization.quantizer.ModelQuantizer"
DEQUANTIZER = "nvflare.app_opt.pt.quantization.dequantizer.ModelDequantizer"
CLASSES = {
    SITE: (EXECUTOR, TRAINER, PERCENTILE, QUANTIZER, DEQUANTIZER),
    SERVER: (
        "fl_bridge.controller.RoundController",
        "fl_bridge.metrics.MetricsReceiver",
        "fl_bridge.persistor.FederationPersistor",
        QUANTIZER,
        DEQUANTIZER,
    ),
}
"""All that a job may name, each exactly: FLARE takes an entry that ends in a dot for a whole package."""

_RIGHTS = {SITE: ("submit_job", "abort_job"), SERVER: ("submit_job", "abort_job", "get_job_meta", "check_status")}
"""All that `fl-bridge run` asks for: no code of its own, no shell command, no copy of a job."""
_ADMIN_ROLE = "project_admin"

_FOREIGN = (
    "startup/*__*resources.json",
    "local/*__*resources.json",
    "local/job_resources.json",
    "local/privacy.json",
    "local/custom",
)
"""What FLARE would take more settings, classes or code from at a site."""
JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""A job's id as FLARE makes it, which names a folder of the kit."""
_STARTUP_KEYS = {"format_version", "servers", "client", "require_signed_jobs"}


def update_kit(kit: Path) -> list[str]:
    """Bring a kit's policy up to date with this software; what is the site's own stays.

    Returns:
        The files that changed, relative to the kit, in words.

    Raises:
        ConfigError: no kit, or something in it that does not belong there.
    """
    kit = kit.absolute()
    role = find_role(kit)
    if role == SITE:
        _check_nothing_foreign(kit)
    changed = []
    for name, content in _policy_files(kit, role).items():
        path = kit / "local" / name
        if not _holds(path, content):
            write_private(path, json.dumps(content, indent=1).encode())
            changed.append(f"local/{name}")
    for script in sorted(kit.glob("startup/*.sh")) if role == SITE else []:
        script.unlink()  # FLARE's own way to start, past `site_process`
        changed.append(f"startup/{script.name} removed")
    return changed


def find_role(kit: Path) -> str:
    """Whose kit a folder is: `server` or `site`.

    Raises:
        ConfigError: nobody's.
    """
    for role, name in STARTUP.items():
        if (kit / "startup" / name).is_file():
            return role
    raise ConfigError(f"{kit}: expected the kit of a server or a site: give a folder that fl-bridge provision made")


def authorization(role: str) -> dict[str, Any]:
    """FLARE's `authorization.json`: the rights that a run needs, and no others."""
    return {"format_version": "1.0", "permissions": {_ADMIN_ROLE: dict.fromkeys(_RIGHTS[role], "any")}}


def _policy_files(kit: Path, role: str) -> dict[str, dict[str, Any]]:
    files = {"authorization.json": authorization(role), "resources.json": _site_resources()}
    if role == SERVER:
        return {**files, "resources.json": _server_resources(kit)}
    # A site takes nothing from its kit's defaults, which the consortium wrote: a log's settings can name classes.
    return {**files, "log_config.json": _log_settings()}


def _site_resources() -> dict[str, Any]:
    return {
        **_class_policy(SITE),
        # Logs name files, and files patients: they do not leave the site.
        "allow_log_streaming": False,
        "client": {"retry_timeout": 30, "compression": "Gzip"},
        "components": [
            {
                "id": "resource_manager",
                "path": "nvflare.app_common.resource_managers.gpu_resource_manager.GPUResourceManager",
                "args": {"num_of_gpus": 0, "mem_per_gpu_in_GiB": 0, "expiration_period": 300},
            },
            {
                "id": "resource_consumer",
                "path": "nvflare.app_common.resource_consumers.gpu_resource_consumer.GPUResourceConsumer",
                "args": {},
            },
            {"id": "process_launcher", "path": "fl_bridge.site_process.SiteJobLauncher", "args": {}},
        ],
    }


def _server_resources(kit: Path) -> dict[str, Any]:
    resources = json.loads((kit / "local" / "resources.json.default").read_text(encoding="utf-8"))
    # FLARE's default is the system's temporary folder, which a restart may empty and others can read.
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(kit / "flare" / "snapshots")
    for component in resources["components"]:
        if component["id"] == "job_manager":
            component["args"]["uri_root"] = str(kit / "flare" / "jobs")
        if component["id"] == "job_scheduler":
            component["args"]["max_jobs"] = 1
        if component["id"] == "process_launcher":
            component["path"] = "fl_bridge.server_process.ServerJobLauncher"
    resources["components"] = [item for item in resources["components"] if item["id"] != "log_receiver"]
    # A site that is gone for so long is told to be, and the round goes on without it.
    resources["servers"][0]["heart_beat_timeout"] = 60
    return {**resources, **_class_policy(SERVER)}


def _class_policy(role: str) -> dict[str, Any]:
    classes = list(CLASSES[role])
    return {"format_version": 2, "class_list_enforcement_mode": "enforce", "class_allow_list": classes}


def _log_settings() -> dict[str, Any]:
    """FLARE's own defaults, from its file: to import FLARE takes a second."""
    package = find_spec("nvflare")
    if package is None or not package.origin:
        raise ConfigError("expected NVIDIA FLARE to be installed: install iopfl as README.md says")
    return json.loads((Path(package.origin).parent / "fuel" / "utils" / "log_config.json").read_bytes())


def _check_nothing_foreign(kit: Path) -> None:
    foreign = sorted(str(path.relative_to(kit)) for pattern in _FOREIGN for path in kit.glob(pattern))
    startup = _read_json(kit / "startup" / STARTUP[SITE])
    foreign += [f"startup/{STARTUP[SITE]}: {key}" for key in sorted(set(startup or {}) - _STARTUP_KEYS)]
    if foreign:
        raise ConfigError(
            f"{kit}: {', '.join(foreign)}: FLARE would take code or classes from there, which no kit of fl-bridge "
            "has: ask who put it there, and remove it"
        )


def _holds(path: Path, content: Mapping[str, Any]) -> bool:
    return _read_json(path) == content


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
