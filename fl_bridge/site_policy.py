"""A site's own settings: `site.yaml` in its kit, which the hospital's administrator owns and the consortium does not.

What leaves the site is decided here, whatever a job asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml

from iopfl.base.errors import ConfigError, SitsOutError
from iopfl.base.names import is_name
from iopfl.base.private_files import write_private
from iopfl.base.reasons import Reason
from iopfl.core.settings_files import read_settings

FILE = "site.yaml"
_UNLIMITED = 2**60
FEDERATION, TASKS = "federation", "tasks"


@dataclass(frozen=True)
class SitePolicy:
    """What a site's administrator decides.

    Attributes:
        federation: id of the one federation that this site takes part in; empty = none yet.
        tasks: names of the tasks that it agreed to.
        share_personalized: whether the personalized model may leave the site, for the bank.
        label_server: URL of the site's label server.
        token_file: file with its bearer token, relative to this file; empty = none asked.
        certificate: PEM file of the authority of its certificate, relative to this file; empty = the system's.
        patience: seconds to wait for a label server that is away or busy with a clinician's training.
        min_new_labels: labels drawn since the last round, without which a round is sat out.
        max_message_mb: a larger message (2**20 bytes) of the server's is refused before it is whole; 0 = no limit.
        max_rounds: rounds that this site trains, whatever federation they claim to be of; 0 = no limit.
        max_shares: times that the personalized model leaves in all; 0 = no limit.
        share_every: rounds trained here between two times that it leaves; 0 = whenever it is asked for.
        share_days: days between two times, by the site's own clock.
        clip: the shared model's difference to the global one is scaled down to this norm; 0 = as it is.
        noise: Gaussian noise added to it, as a multiple of `clip` (the noise multiplier of differential privacy).
    """

    federation: str = ""
    tasks: tuple[str, ...] = ()
    share_personalized: bool = True
    label_server: str = "http://127.0.0.1:8000"
    token_file: str = ""
    certificate: str = ""
    patience: float = 1800.0
    min_new_labels: int = 0
    max_message_mb: int = 2048
    max_rounds: int = 0
    max_shares: int = 0
    share_every: int = 0
    share_days: float = 0.0
    clip: float = 0.0
    noise: float = 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, what: str) -> SitePolicy:
        """Settings by name.

        Raises:
            ConfigError: an unknown name, a value of the wrong type, no word on sharing, or noise without a clip.
        """
        known = {field.name: type(field.default) for field in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"{what}: unknown {', '.join(unknown)}; there are {', '.join(known)}")
        if not isinstance(values.get("share_personalized"), bool):
            raise ConfigError(
                f"{what}: expected share_personalized: true or false, an explicit choice whether the site's "
                f"personalized model may enter the bank, given {values.get('share_personalized')!r}"
            )
        checked: dict[str, Any] = {}
        for name, value in values.items():
            kind = known[name]
            if name in (FEDERATION, TASKS):
                checked[name] = _read_agreed(name, value, what)
                continue
            fits = isinstance(value, bool) if kind is bool else isinstance(value, kind) and not isinstance(value, bool)
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                value, fits = float(value), True
            if not fits or (kind in (int, float) and not 0 <= value < math.inf):
                raise ConfigError(f"{what}: {name}: expected {_describe(kind)}, given {value!r}")
            checked[name] = value
        policy = cls(**checked)
        if policy.noise and not policy.clip:
            raise ConfigError(f"{what}: noise {policy.noise:g} needs a clip: it is a multiple of it")
        return policy

    @classmethod
    def read(cls, folder: Path) -> SitePolicy:
        """Read `site.yaml` of a kit's `local` folder.

        Raises:
            ConfigError: it cannot be read, or see `from_dict`.
        """
        path = folder / FILE
        return cls.from_dict(read_settings(path, str(path)), what=str(path))

    @property
    def names_what_is_agreed(self) -> bool:
        """Whether any round at all can be of what this site agreed to."""
        return bool(self.federation and self.tasks)

    @property
    def max_message_bytes(self) -> int:
        """Bytes that a message of the server's may have."""
        return self.max_message_mb * 2**20 or _UNLIMITED

    def check_federation(self, federation: str) -> None:
        """Raises:
        SitsOutError: it is not the one that this site agreed to.
        """
        if not self.federation or federation != self.federation:
            _refuse(FEDERATION, self.federation, federation)

    def check_task(self, task: str) -> None:
        """Raises:
        SitsOutError: it is none that this site agreed to.
        """
        if task not in self.tasks:
            _refuse(TASKS, ", ".join(self.tasks), task)

    def write(self, folder: Path) -> None:
        """Write `site.yaml`."""
        text = "# This site's own settings: the hospital decides. docs/site-administrator.md explains them.\n"
        write_private(
            folder / FILE, (text + yaml.safe_dump(asdict(self), default_flow_style=None, sort_keys=False)).encode()
        )


def agree(folder: Path, *, federation: str, tasks: Sequence[str]) -> bool:
    """Write into an older `site.yaml` what it does not name yet: the federation and the tasks that a site agreed to.

    Args:
        folder: `local` of its kit.
        federation: its id.
        tasks: their names.

    Returns:
        Whether something was written. The rest of the file, its comments too, stays as it is.

    Raises:
        ConfigError: it names others.
    """
    policy, path = SitePolicy.read(folder), folder / FILE
    agreed: dict[str, Any] = {FEDERATION: federation, TASKS: tuple(tasks)}
    for name, value in agreed.items():
        _read_agreed(name, value, f"{path}")
    before = {name: getattr(policy, name) for name in agreed}
    if before == agreed:
        return False
    text = path.read_text(encoding="utf-8")
    written = read_settings(path, str(path))
    named = [name for name in agreed if name in written and before[name] != agreed[name]]
    if named:
        raise ConfigError(f"{path}: names {' and '.join(named)} already: correct them there")
    missing = {name: list(value) if name == TASKS else value for name, value in agreed.items() if name not in written}
    added = yaml.safe_dump(missing, default_flow_style=None, sort_keys=False)
    write_private(path, f"{text.rstrip()}\n{added}".encode())
    return True


def _read_agreed(name: str, value: Any, what: str) -> Any:
    if name == FEDERATION:
        if value != "" and not is_name(value):
            raise ConfigError(f"{what}: {name}: expected the id of one federation, given {value!r}")
        return value
    if not isinstance(value, list | tuple) or not all(is_name(task) for task in value):
        raise ConfigError(f"{what}: {name}: expected a list of names of tasks, such as [vessel], given {value!r}")
    return tuple(value)


def _refuse(name: str, agreed: str, given: str) -> NoReturn:
    raise SitsOutError(
        f"{FILE}: {name}: this site agreed to {agreed or 'none yet'}, ordered is {given}: where that is agreed on "
        "too, its administrator names it there",
        reason=Reason.NOT_AGREED,
    )


def _describe(kind: type) -> str:
    return {bool: "true or false", str: "text", int: "a whole number from 0", float: "a number from 0"}[kind]
