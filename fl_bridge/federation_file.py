"""`federation.yaml`: what a consortium agrees on, in one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fl_bridge.aggregation import AGGREGATIONS, AVERAGE
from fl_bridge.site_policy import SitePolicy
from iopfl.base.errors import ConfigError
from iopfl.core.order import MAX_ROUNDS
from iopfl.core.settings_files import read_settings
from iopfl.core.task import Task, read_task

QUANTIZE = ("none", "float16")


@dataclass(frozen=True, kw_only=True)
class FederationFile:
    """A federation's settings.

    Attributes:
        name: the name of the federation.
        task: what is segmented.
        host: name or address of the server, as the sites reach it.
        port: the port of the server.
        sites: site name -> what its administrator starts with; the site's own `site.yaml` counts.
        rounds: in all.
        rounds_per_job: a FLARE job's length. Starting one takes 12 to 20 s, and should be under a tenth of it.
        share_every: rounds from one bank to the next; 0 = at the end alone.
        min_sites: updates that a round needs.
        round_timeout: seconds that a site may take for a round.
        grace: seconds to wait for the others once `min_sites` have answered.
        norm_limit: see `RoundController`.
        aggregation: one of `AGGREGATIONS`.
        weight_limit: see `RoundController`.
        proximal_weight: the weight of FedProx's term; 0 = none.
        quantize: `float16` halves the bytes on the link.
        update_percentile: entries of an update below this percentile stay at the site (FLARE's
            `PercentilePrivacy`); 0 = all leave.
        seed: the seed of initial weights and of training.
        federation: its id, made with its first kits; no setting of the file.
    """

    name: str
    task: Task
    host: str
    port: int = 8002
    sites: Mapping[str, SitePolicy]
    rounds: int
    rounds_per_job: int = 10
    share_every: int = 0
    min_sites: int = 2
    round_timeout: int = 24 * 3600
    grace: int = 3600
    norm_limit: float = 100.0
    aggregation: str = AVERAGE
    weight_limit: float = 0.5
    proximal_weight: float = 0.0
    quantize: str = "none"
    update_percentile: int = 0
    seed: int = 0
    federation: str = ""

    @property
    def clients(self) -> dict[str, str]:
        """FLARE client name -> site name; FLARE takes no dots or blanks in a name."""
        return {client_name(site): site for site in self.sites}


def client_name(site: str) -> str:
    """A site's name as FLARE takes it.

    >>> client_name("St. Mary's")
    'St-Mary-s'
    """
    return re.sub("[^A-Za-z0-9]+", "-", site).strip("-")


def read_federation(path: Path) -> FederationFile:
    """Read a federation's file.

    Raises:
        ConfigError: it cannot be read, or says what to correct.
    """
    given = read_settings(path, str(path))
    known = {field.name for field in fields(FederationFile)} - {"host", "port", "federation"} | {"server"}
    unknown = sorted(set(given) - known)
    missing = sorted({"name", "task", "server", "rounds", "sites"} - set(given))
    if unknown or missing:
        raise ConfigError(
            f"{path}: unknown {', '.join(unknown) or 'none'}, missing {', '.join(missing) or 'none'}; "
            f"there are {', '.join(sorted(known))}"
        )
    values = {key: value for key, value in given.items() if key not in ("server", "task", "sites")}
    server = given["server"] if isinstance(given["server"], dict) else {}
    if not isinstance(server.get("host"), str) or set(server) - {"host", "port"}:
        raise ConfigError(f"{path}: expected server: {{host: NAME, port: 8002}}, given {given['server']!r}")
    values.update(server)
    _check_values(values, path)
    task = _read_task(given["task"], path)
    return FederationFile(**values, task=task, sites=_read_sites(given, task, path))


def _check_values(values: Mapping[str, Any], path: Path) -> None:
    lowest = {"rounds": 1, "rounds_per_job": 1, "min_sites": 1, "port": 1, "round_timeout": 1}
    highest = {"rounds": MAX_ROUNDS, "port": 65535, "update_percentile": 99, "weight_limit": 1}
    for field in fields(FederationFile):
        if field.name not in values or field.name in ("task", "sites"):
            continue
        value, kind = values[field.name], field.type
        if kind == "str":
            fits = isinstance(value, str) and bool(value)
        else:
            numbers = (int,) if kind == "int" else (int, float)
            fits = isinstance(value, numbers) and not isinstance(value, bool)
            fits = fits and lowest.get(field.name, 0) <= value <= highest.get(field.name, float("inf"))
        if not fits:
            raise ConfigError(f"{path}: {field.name}: expected {kind} in its range, given {value!r}")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", values["name"]):
        raise ConfigError(f"{path}: name: expected letters, digits, _ and -, given {values['name']!r}")
    for name, choices in (("aggregation", tuple(AGGREGATIONS)), ("quantize", QUANTIZE)):
        if name in values and values[name] not in choices:
            raise ConfigError(f"{path}: {name}: expected one of {', '.join(choices)}, given {values[name]!r}")


def _read_task(name: Any, path: Path) -> Task:
    beside = path.parent / str(name)
    return read_task(str(beside) if beside.is_file() else str(name))


def _read_sites(federation: Mapping[str, Any], task: Task, path: Path) -> dict[str, SitePolicy]:
    given = federation["sites"]
    if not isinstance(given, dict) or len(given) < 2:
        raise ConfigError(f"{path}: sites: expected two sites at least, by name, given {given!r}")
    sites = {}
    for site, values in given.items():
        if not isinstance(values, dict):
            raise ConfigError(
                f"{path}: sites: {site}: expected {{share_personalized: true or false}}, given {values!r}"
            )
        # A site agrees to these rounds of this task: more of them, or of another, are its administrator's to allow.
        agreed = {"max_rounds": federation["rounds"], "tasks": [task.name], **values}
        sites[str(site)] = SitePolicy.from_dict(agreed, what=f"{path}: sites: {site}")
    names = [client_name(site) for site in sites]
    if len(set(names)) < len(names) or not all(names) or {"server", "admin"} & set(names):
        raise ConfigError(
            f"{path}: sites: expected names that differ in letters and digits, and are not 'server' or 'admin', "
            f"given {', '.join(sites)}"
        )
    return sites
