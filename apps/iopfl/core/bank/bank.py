"""The model bank: the global model and the sites' personalized models, with a manifest.

A folder:

    manifest.json            the version that is served: a copy of one of versions/
    versions/000001.json     every version written, until pruned
    <first 32 digits of its SHA-256>.safetensors   an entry; versions share those they have in common

or one `.iopfl` zip of a single version (`exchange`). A version becomes
the served one by one rename of `manifest.json`. Nothing is ever unpickled.
Next: `routing` mixes what is in here.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from iopfl.base.errors import BankError, BankMismatchError, WeightsError
from iopfl.base.files import write_bytes
from iopfl.base.locks import hold_folder
from iopfl.core.bank.manifest import (
    BankEntry,
    Manifest,
    Model,
    Role,
    checked_name,
    list_versions,
    read_manifest,
    serve_manifest,
    version_file,
)
from iopfl.core.bank.signing import Keyring, check_signature
from iopfl.core.networks import build_network
from iopfl.core.task import Task
from iopfl.core.weights import Weights, average, check_weights, read_weights, serialize

__all__ = ["BankEntry", "Model", "ModelBank", "Role", "check_same_task", "save_bank"]

OWN_SETTINGS = ("training", "adaptation", "description", "subject", "codes", "images")
"""Fields of a task that a site may choose for itself; in all others it must have the bank's."""


class ModelBank:
    """A verified version of a bank, opened for reading.

    Experts are ordered as the manifest's entries: the global model first,
    then the sites by name. `open` is the way to get one.
    """

    def __init__(self, folder: Path, manifest: Manifest, experts: Sequence[Weights]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.experts = list(experts)

    @classmethod
    def open(
        cls, folder: Path, *, task: Task | None = None, keys: Keyring | None = None, version: int | None = None
    ) -> ModelBank:
        """Open a bank and verify all of it: signature, checksums, keys, shapes, values.

        Args:
            folder: the bank's folder.
            task: what the caller is going to segment; None = whatever the bank is for.
            keys: whose signatures are accepted; None = any whole signature.
            version: None = the served one.

        Raises:
            BankTrustError: altered after it was signed, or its signer is not trusted.
            BankMismatchError: another task, or an entry of another network.
            BankError: anything else, named: no bank, a missing file, an altered byte.
        """
        manifest = read_manifest(folder, version=version)
        what = f"bank {folder.name} version {manifest.version}"
        seal = {"signature": manifest.signature, "signer": manifest.signer, "what": what}
        if keys is None:
            check_signature(manifest.signed_content(), **seal)
        else:
            keys.check(manifest.signed_content(), **seal)
        if task is not None:
            check_same_task(manifest.task, task, what)
        reference = build_network(manifest.task).state_dict()
        experts = []
        for entry in manifest.entries:
            weights = _read_entry(folder, entry, what)
            try:
                check_weights(weights, reference, what=f"{what}: entry {entry.name}")
            except WeightsError as error:
                raise BankMismatchError(str(error)) from error
            experts.append(weights)
        names = [(entry.role, entry.site) for entry in manifest.entries]
        if len(set(names)) != len(names) or sum(role is Role.GLOBAL for role, _ in names) > 1:
            raise BankError(f"{what}: expected one entry per site and one global model, an entry is listed twice")
        if not experts or manifest.entries[0].role is not Role.GLOBAL:
            raise BankError(f"{what}: expected the global model as its first entry")
        return cls(folder, manifest, experts)

    def __len__(self) -> int:
        """E, the number of experts."""
        return len(self.experts)

    @property
    def task(self) -> Task:
        """The task it was made for."""
        return self.manifest.task

    @property
    def names(self) -> list[str]:
        """Expert names in order: `global`, then sites."""
        return [entry.name for entry in self.manifest.entries]

    @property
    def label(self) -> str:
        """Version and content id, as results carry it."""
        return f"{self.manifest.version}-{self.manifest.content_id}"

    def find(self, site: str | None) -> tuple[BankEntry, Weights] | None:
        """A site's personalized model, or the global one for None; None if there is none."""
        pairs = zip(self.manifest.entries, self.experts, strict=True)
        role = Role.GLOBAL if site is None else Role.PERSONALIZED
        return next(((e, w) for e, w in pairs if e.role is role and (site is None or e.site == site)), None)

    def build(self, weights: Weights | None = None) -> nn.Module:
        """The task's network with these weights, or with the uniform average of all experts."""
        network = build_network(self.task)
        network.load_state_dict(average(self.experts) if weights is None else weights)
        return network.eval()


def check_same_task(bank_task: Task, task: Task, what: str) -> None:
    """Check that a bank fits a task: everything but the settings that a site may choose for itself.

    Raises:
        BankMismatchError: names the fields that differ.
    """
    theirs, ours = bank_task.to_dict(), task.to_dict()
    differing = [key for key in theirs if key not in OWN_SETTINGS and theirs[key] != ours.get(key)]
    if differing:
        details = "; ".join(f"{key}: bank {theirs[key]!r}, task {ours[key]!r}" for key in differing)
        raise BankMismatchError(f"{what} is for another task ({details}): give the bank's task, or this task's bank")


def save_bank(folder: Path, models: Sequence[Model], *, task: Task, federation: str, keys: Keyring) -> ModelBank:
    """Write a new version of a bank and make it the served one, or change nothing.

    Args:
        folder: new, or a bank already.
        models: the global model and any personalized ones, in any order.
        task: theirs.
        federation: id of the federation that made them.
        keys: signs the manifest.

    Raises:
        BankError: not exactly one global model, a site twice, or the disk refused (full, read-only).
        WeightsError: a model of another network.
    """
    models = sorted(models, key=lambda model: (model.role is not Role.GLOBAL, model.site))
    names = [model.site if model.role is Role.PERSONALIZED else "" for model in models]
    if len(set(names)) != len(names) or "" not in names:
        raise BankError(f"expected one global model and one personalized model per site, given {names}")
    reference = build_network(task).state_dict()
    for model in models:
        check_weights(model.weights, reference, what=f"model of {model.site or 'the federation'}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with hold_folder(folder):
            manifest = _write_version(folder, models, task, federation, keys)
    except OSError as error:
        raise BankError(
            f"bank {folder.name} could not be written ({error.strerror}); the version before is as it was; "
            "free some space or choose another folder"
        ) from error
    return ModelBank(folder, manifest, [model.weights for model in models])


def _write_version(folder: Path, models: Sequence[Model], task: Task, federation: str, keys: Keyring) -> Manifest:
    """Write entries and manifest of a version and serve it, or leave nothing of it; the folder's lock is held."""
    entries, version = [], max(list_versions(folder), default=0) + 1
    written: list[Path] = [version_file(folder, version)]
    try:
        for model in models:
            content = serialize(model.weights)
            sha256 = hashlib.sha256(content).hexdigest()
            path = folder / f"{sha256[:32]}.safetensors"
            if not path.is_file():
                write_bytes(path, content)
                written.append(path)
            about = (model.site, model.role, model.round_index, model.samples, dict(model.metrics))
            entries.append(BankEntry(*about, file=path.name, sha256=sha256))
        draft = Manifest(
            version=version,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            federation=federation,
            task=task,
            entries=tuple(entries),
            signer=keys.public_key,
        )
        manifest = dataclasses.replace(draft, signature=keys.sign(draft.signed_content()))
        serve_manifest(folder, manifest)
    except OSError:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return manifest


def _read_entry(folder: Path, entry: BankEntry, what: str) -> Weights:
    path = folder / checked_name(entry, what)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BankError(f"{what}: entry {entry.name}: {entry.file} is missing ({error.strerror})") from error
    if found != entry.sha256:
        raise BankError(
            f"{what}: entry {entry.name}: {entry.file} has another checksum than in the manifest: the file was altered"
        )
    weights, _ = read_weights(path)
    return {key: value if value.is_floating_point() else value.to(torch.int64) for key, value in weights.items()}
