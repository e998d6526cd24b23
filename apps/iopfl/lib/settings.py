"""The app's settings: the only place that reads MONAI Label's string-valued `--conf`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from iopfl.base.errors import ConfigError
from iopfl.base.names import check_name
from iopfl.core.bank.signing import default_keys
from iopfl.core.task import Task, read_task
from iopfl.dicomio.result_kinds import KINDS, check_kinds
from iopfl.labels.final_rule import FinalRule


def check_device(name: str) -> str:
    """A device that is there.

    Raises:
        ConfigError: it is not.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"no device {name!r}: expected cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, this machine has none that PyTorch can use: give cpu")
    return str(device)


@dataclass(frozen=True)
class AppSettings:
    """What a label server serves.

    Attributes:
        tasks: name -> task; empty = those of the banks.
        banks: folders of banks, one per task.
        site: this site's name, as the bank knows it; empty = an outside site.
        state: folder of all that must not be lost.
        keys: folder of the keyring that says whose banks are trusted.
        device: where to compute, `cpu` or `cuda`.
        final_label: which of an image's labels is the final one.
        lease_minutes: how long an image that was offered to one annotator is offered to no other.
        max_memory_gb: what an answer may take of the memory, in GB; None = a share of what there is (`core.memory`).
        federations: ids of those that a bridge may bring rounds of; empty = the first that come.
        max_federations: how many a task may have.
        results: kinds of what is stored in a PACS of each submitted label (`dicomio.result_kinds`).
        page_cache_gb: what answers that our page shows may take of the memory, in GB.
        answer_seconds: what the passes of a routed answer may take; it has fewer where all would take longer.
        pacs_cache_gb: what the images of a PACS may take on the disk, in GB.
        pacs_credentials: YAML file with `token`, or `username` and `password`; None = from the environment, or none.
        pacs_ca: PEM file of the authority that signed the PACS's certificate; None = the public ones count.
    """

    tasks: Mapping[str, Task]
    banks: tuple[Path, ...]
    site: str
    state: Path
    keys: Path
    device: str
    final_label: FinalRule
    lease_minutes: float
    max_memory_gb: float | None
    federations: tuple[str, ...]
    max_federations: int
    results: tuple[str, ...]
    page_cache_gb: float
    answer_seconds: float
    pacs_cache_gb: float
    pacs_credentials: Path | None
    pacs_ca: Path | None

    @classmethod
    def from_conf(cls, conf: Mapping[str, str], *, default_state: Path) -> AppSettings:
        """Read `--conf`.

        Args:
            conf: `tasks` and `bank` are comma-separated; the rest as the fields.
            default_state: where `state` is not given.

        Raises:
            ConfigError: an unknown key, an unknown task, no bank, or a device that is not there.
        """
        known = {"tasks", "bank", *(field.name for field in fields(cls))} - {"banks"}
        unknown = sorted(set(conf) - known)
        if unknown:
            raise ConfigError(f"unknown --conf {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        tasks = [read_task(name) for name in _split(conf.get("tasks", ""))]
        banks = tuple(Path(name) for name in _split(conf.get("bank", "")))
        if not banks:
            raise ConfigError(
                "no bank: give --conf bank FOLDER (or iopfl serve --bank FOLDER); "
                "fl-bridge simulate makes one, iopfl bank import brings one in"
            )
        return cls(
            tasks={task.name: task for task in tasks},
            banks=banks,
            site=conf.get("site", ""),
            state=Path(conf.get("state") or default_state),
            keys=Path(conf.get("keys") or default_keys()),
            device=check_device(conf.get("device") or "cpu"),
            final_label=FinalRule.parse(conf.get("final_label") or "newest"),
            lease_minutes=_read_positive(conf, "lease_minutes", 30.0),
            max_memory_gb=_read_positive(conf, "max_memory_gb", 0) if conf.get("max_memory_gb") else None,
            federations=tuple(check_name(name, "a federation id") for name in _split(conf.get("federations", ""))),
            max_federations=int(_read_positive(conf, "max_federations", 4, least=1)),
            results=_read_results(conf.get("results", "")),
            page_cache_gb=_read_positive(conf, "page_cache_gb", 2.0),
            answer_seconds=_read_positive(conf, "answer_seconds", 300.0),
            pacs_cache_gb=_read_positive(conf, "pacs_cache_gb", 20.0),
            pacs_credentials=_read_file(conf, "pacs_credentials"),
            pacs_ca=_read_file(conf, "pacs_ca"),
        )


def _split(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _read_results(value: str) -> tuple[str, ...]:
    try:
        return check_kinds(_split(value) or KINDS[:1])
    except ConfigError as error:
        raise ConfigError(f"results: {error}") from error


def _read_positive(conf: Mapping[str, str], key: str, default: float, *, least: float = 0) -> float:
    try:
        value = float(conf.get(key) or default)
    except ValueError:
        value = -1.0
    if not (0 < value < math.inf and value >= least):
        raise ConfigError(
            f"{key}: expected a number {f'from {least:g} on' if least else 'above 0'}, given {conf[key]!r}"
        )
    return value


def _read_file(conf: Mapping[str, str], key: str) -> Path | None:
    if not conf.get(key):
        return None
    path = Path(conf[key]).expanduser()
    if not path.is_file():
        raise ConfigError(f"{key}: expected a file, {path} is none")
    return path
