"""Which jobs a site runs: one configuration file, exact classes, and of their arguments only what a site may be told.

Where the site's images are, which label server trains and what leaves it, `site.yaml` says and never a job.
FLARE's own checks leave gaps here: a folder `custom/` lifts its list of classes, an argument is not looked at, and a
job's id becomes a folder of the kit, `local` too.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE

from fl_bridge.exchange import TASK_PUBLISH, TASK_SHARE, TASK_TRAIN
from fl_bridge.kit_policy import DEQUANTIZER, EXECUTOR, JOB_ID, PERCENTILE, QUANTIZER, TRAINER
from iopfl.base.archives import read_entry
from iopfl.base.errors import ConfigError
from iopfl.base.names import is_name

CONFIGURATION = "config/config_fed_client.json"
_SIGNATURES = frozenset(
    folder + name for folder in ("", "config/") for name in (NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE)
)
"""By which FLARE knows who submitted a job."""
_MAX_BYTES = 64 * 1024
_TASKS = frozenset({"*", TASK_TRAIN, TASK_SHARE, TASK_PUBLISH})

META = frozenset(
    {
        "job_id", "name", "submitter_name", "submitter_org", "submitter_role", "min_clients", "deploy_map", "status",
        "submit_time", "submit_time_iso", "start_time", "duration", "schedule_count", "last_schedule_time",
        "schedule_history", "job_deploy_detail", "job_clients", "study", "resource_spec", "data_storage_format",
        "job_folder_name", "approvals", "mandatory_clients",
    }
)  # fmt: skip
"""What FLARE notes of a job. Left out is what would choose a container, a scope, or code of its own."""


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


_ARGUMENTS: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    EXECUTOR: {"trainer_id": lambda value: value == "trainer"},
    TRAINER: {"task": is_name, "seed": _is_whole, "proximal_weight": _is_share},
    PERCENTILE: {
        "percentile": lambda value: _is_whole(value) and 0 <= value <= 100,
        "gamma": _is_share,
        "data_kinds": lambda value: value == ["WEIGHT_DIFF", "WEIGHTS"],
    },
    QUANTIZER: {"quantization_type": lambda value: value == "float16"},
    DEQUANTIZER: {},
}
_PLACES = {
    "components": (TRAINER,),
    "executor": (EXECUTOR,),
    "filters": (PERCENTILE, QUANTIZER, DEQUANTIZER),
}


def check_job_id(value: Any) -> str:
    """A job's id as FLARE makes it; it names a folder of the kit, which is emptied first.

    Raises:
        ConfigError: it is another.
    """
    if not isinstance(value, str) or not JOB_ID.fullmatch(value):
        raise _refuse("its id is none that FLARE makes")
    return value


def check_job(content: Any) -> None:
    """Check a job as it arrives, its files as a zip: nothing of it is on disk yet.

    Raises:
        ConfigError: it is not one of `fl-bridge run`.
    """
    if not isinstance(content, bytes):
        raise _refuse("it is no zip file")
    check_configuration(_read_configuration(content))


def check_configuration(values: Any) -> None:
    """Check the configuration of a job's part at a site.

    Raises:
        ConfigError: something in it that a run does not need.
    """
    known = {"format_version", "executors", "components", "task_data_filters", "task_result_filters"}
    if not isinstance(values, dict) or set(values) - known or values.get("format_version") != 2:
        raise _refuse("its configuration has other parts than a round needs")
    executors = _list(values, "executors")
    if len(executors) != 1:
        raise _refuse("it has more executors than one, or none")
    _check_keys(executors[0], {"tasks", "executor"})
    _check_tasks(executors[0].get("tasks"))
    _check_component(executors[0].get("executor"), "executor")
    for component in _list(values, "components"):
        _check_component(component, "components")
    for chain in _list(values, "task_data_filters") + _list(values, "task_result_filters"):
        _check_keys(chain, {"tasks", "filters"})
        _check_tasks(chain.get("tasks"))
        for component in _list(chain, "filters"):
            _check_component(component, "filters")


def _read_configuration(content: bytes) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = [entry for entry in archive.infolist() if not entry.is_dir()]
            names = [entry.filename for entry in files]
            folders = {entry.filename for entry in archive.infolist() if entry.is_dir()}
            if set(names) - _SIGNATURES != {CONFIGURATION} or len(set(names)) < len(names) or folders - {"config/"}:
                raise _refuse(f"it has other files than {CONFIGURATION}; code of its own is not run here")
            if any(entry.file_size > _MAX_BYTES for entry in files):
                raise _refuse(f"it has files of more than {_MAX_BYTES} bytes")
            return json.loads(read_entry(archive, CONFIGURATION, limit=_MAX_BYTES))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, RecursionError) as error:
        raise _refuse("it is no whole zip file of JSON") from error
    except ValueError as error:
        raise _refuse("its configuration is no JSON") from error


def _check_component(component: Any, place: str) -> None:
    _check_keys(component, {"path", "args", "id"} if place == "components" else {"path", "args"})
    path, arguments = component.get("path"), component.get("args", {})
    if path not in _PLACES[place]:
        raise _refuse(f"it names a class that a site does not run as one of its {place}")
    if component.get("id", "trainer") != "trainer":
        raise _refuse("it has another component than a trainer")
    known = _ARGUMENTS[path]
    if not isinstance(arguments, dict) or any(key not in known or not known[key](arguments[key]) for key in arguments):
        raise _refuse(f"it gives {path.rsplit('.', 1)[1]} arguments that are the site's own to decide")


def _check_tasks(tasks: Any) -> None:
    if not isinstance(tasks, list) or not all(isinstance(task, str) and task in _TASKS for task in tasks):
        raise _refuse("it has tasks that no round has")


def _check_keys(values: Any, known: set[str]) -> None:
    if not isinstance(values, dict) or set(values) - known:
        raise _refuse("its configuration has other parts than a round needs")


def _list(values: Mapping[str, Any], key: str) -> list[Any]:
    found = values.get(key, [])
    if not isinstance(found, list):
        raise _refuse("its configuration has other parts than a round needs")
    return found


def _refuse(why: str) -> ConfigError:
    return ConfigError(f"expected a job of fl-bridge run, {why}: see docs/federation.md")
