"""The models a label server answers with: banks and local models, reloaded when they change on disk."""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iopfl.base.errors import BankError, BankMismatchError, ConfigError, WeightsError
from iopfl.core.bank.bank import ModelBank
from iopfl.core.bank.manifest import MANIFEST, read_manifest
from iopfl.core.bank.signing import Keyring
from iopfl.core.memory import limit_to
from iopfl.core.predictor import LocalModel, Predictor
from iopfl.core.task import Task
from iopfl.core.weights import check_weights, read_weights, write_weights
from iopfl.lib.settings import AppSettings

logger = logging.getLogger(__name__)


@dataclass
class _Served:
    """One task's bank folder and what was last opened of it."""

    folder: Path
    task: Task
    predictor: Predictor | None = None
    stamps: tuple[int, int] = (0, 0)
    error: str | None = None
    computing: threading.RLock = field(default_factory=threading.RLock)
    opening: threading.RLock = field(default_factory=threading.RLock)  # short: descriptions wait for no computation


class SiteModels:
    """All models of a label server, by task.

    A bank put in place is served from the next request on. One that does not
    verify is refused and named; the one before goes on answering. A site inside
    a federation may start without: until its first bank is there, it labels and takes part in rounds.

    Raises:
        BankError: a bank does not verify at start, or its signer is not trusted.
        BankMismatchError: tasks and banks do not go together.
    """

    def __init__(self, settings: AppSettings) -> None:
        self.settings = settings
        self._served: dict[str, _Served] = {}
        awaited = [folder for folder in settings.banks if settings.site and not (folder / MANIFEST).is_file()]
        for folder in (folder for folder in settings.banks if folder not in awaited):
            task = read_manifest(folder).task
            self._served[task.name] = _Served(folder, settings.tasks.get(task.name, task))
        without = sorted(set(settings.tasks) - set(self._served))
        if len(without) != len(awaited):
            banks = ", ".join(folder.name for folder in awaited) or "none"
            raise BankMismatchError(
                f"tasks without a bank: {', '.join(without) or 'none'}; bank folders yet to be filled by a federation: "
                f"{banks}; the other bank(s) are for {', '.join(sorted(self._served)) or 'nothing'}: "
                "give each task one bank folder"
            )
        limit_to(settings.max_memory_gb)
        for served in self._served.values():
            self._open(served)
        for name, folder in zip(without, awaited, strict=True):
            self._served[name] = _Served(folder, settings.tasks[name])

    @property
    def site(self) -> str | None:
        """This site's name; None for an outside site that has none."""
        return self.settings.site or None

    @property
    def tasks(self) -> dict[str, Task]:
        """Task name -> task."""
        return {name: served.task for name, served in self._served.items()}

    def lock(self, task_name: str) -> AbstractContextManager[Any]:
        """Held while a task's predictor is used: it computes one image at a time."""
        return self._find(task_name).computing

    def predictor(self, task_name: str) -> Predictor:
        """The predictor of what is now in the bank folder and the state folder."""
        served = self._find(task_name)
        with served.opening:
            if served.predictor is None and not (served.folder / MANIFEST).is_file():
                raise BankError(f"no bank of {task_name} yet: the first comes when the federation has finished rounds")
            if served.predictor is None or self._stamps(served) != served.stamps:
                try:
                    self._open(served)
                except (BankError, WeightsError, ConfigError) as error:
                    if served.predictor is None:
                        raise
                    # Remembered, so that the same broken bank is not read again at each request.
                    served.stamps, served.error = self._stamps(served), str(error)
                    logger.error("refused, the bank before goes on: %s", error)
            assert served.predictor is not None  # `_open` gave one, or raised
            return served.predictor

    def bank_folder(self, task_name: str) -> Path:
        """Where a task's bank lies."""
        return self._find(task_name).folder

    def local_file(self, task_name: str) -> Path:
        """Where a task's local model lies."""
        return self.settings.state / "local" / f"{task_name}.safetensors"

    def stats_file(self, task_name: str) -> Path:
        """Where a task's training writes its progress."""
        return self.settings.state / "local" / f"{task_name}.json"

    def publish_local(self, task_name: str, local: LocalModel) -> None:
        """Make a local model the one that is served from the next request on, by a rename."""
        path = self.local_file(task_name)
        write_weights(path, local.weights, {name: repr(float(value)) for name, value in local.metrics.items()})

    def describe(self, task_name: str) -> dict[str, Any]:
        """What is served, as plain values, for people."""
        served = self._find(task_name)
        predictor = self.predictor(task_name)
        manifest = predictor.bank.manifest
        choice = predictor.choose()
        return {
            "bank": predictor.bank.label,
            "created": manifest.created,
            "federation": manifest.federation,
            "entries": [
                {
                    "name": entry.name,
                    "role": str(entry.role),
                    "round_index": entry.round_index,
                    "samples": entry.samples,
                    "metrics": dict(entry.metrics),
                }
                for entry in manifest.entries
            ],
            "site": self.site,
            "choice": {"kind": choice.kind, "reason": choice.reason, "metrics": dict(choice.metrics)},
            "error": served.error,
        }

    def _find(self, task_name: str) -> _Served:
        if task_name not in self._served:
            raise ConfigError(f"no task {task_name!r}: this server has {', '.join(sorted(self._served))}")
        return self._served[task_name]

    def _open(self, served: _Served) -> None:
        stamps = self._stamps(served)
        settings = self.settings
        bank = ModelBank.open(served.folder, task=served.task, keys=Keyring(settings.keys))
        local = self._read_local(served.task.name, bank)
        served.predictor = Predictor(
            bank,
            site=self.site,
            task=served.task,
            local=local,
            device=settings.device,
            budget=settings.answer_seconds,
        )
        served.stamps, served.error = stamps, None
        logger.info("serving bank %s of %s, experts %s", bank.label, served.task.name, ", ".join(bank.names))

    def _read_local(self, task_name: str, bank: ModelBank) -> LocalModel | None:
        """The site's own training; one that is broken, or of another network than the bank's, is left out."""
        path = self.local_file(task_name)
        if not path.is_file():
            return None
        try:
            weights, metadata = read_weights(path)
            check_weights(weights, bank.experts[0], what=f"this site's own training, {path.name}")
            return LocalModel(weights, {name: float(value) for name, value in metadata.items()})
        except (WeightsError, ValueError) as error:
            logger.error("not used, train again: %s", error)
            return None

    def _stamps(self, served: _Served) -> tuple[int, int]:
        """Modification times of the manifest and the local model; 0 = not there."""
        paths = (served.folder / MANIFEST, self.local_file(served.task.name))
        return tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in paths)  # type: ignore[return-value]
