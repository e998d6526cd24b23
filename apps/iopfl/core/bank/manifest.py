"""A bank's manifest: what is in it, who made it, for which task.

`docs/bank-format.md` specifies the format; `bank` opens and writes whole banks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iopfl.base.errors import BankError, ConfigError
from iopfl.base.files import write_bytes
from iopfl.base.locks import hold_folder
from iopfl.core.task import Task

if TYPE_CHECKING:
    from iopfl.core.weights import Weights

FORMAT = 1
MANIFEST = "manifest.json"
_VERSIONS = "versions"


class Role(StrEnum):
    """What an entry is."""

    GLOBAL = "global"
    PERSONALIZED = "personalized"


@dataclass(frozen=True)
class Model:
    """A model on its way into a bank.

    Attributes:
        site: whose personalized model; empty for the global one.
        role: global or personalized.
        round_index: last round that went into it.
        samples: training images behind it.
        metrics: validation figures, e.g. `dice`, `dice_global`.
        weights: the weights of the task's network.
    """

    site: str
    role: Role
    round_index: int
    samples: int
    metrics: Mapping[str, float]
    weights: Weights


@dataclass(frozen=True)
class BankEntry:
    """A model in the bank, as the manifest lists it; see `Model`."""

    site: str
    role: Role
    round_index: int
    samples: int
    metrics: Mapping[str, float]
    file: str
    sha256: str

    @property
    def name(self) -> str:
        """What people see: the site, or `global`."""
        return self.site if self.role is Role.PERSONALIZED else "global"


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    `written` is the signed content as it was read: a task's settings that this version
    of iopfl has and the file does not must not change what was signed.
    """

    version: int
    created: str
    federation: str
    task: Task
    entries: tuple[BankEntry, ...]
    signer: str = ""
    signature: str = field(default="", compare=False)
    written: bytes = field(default=b"", compare=False, repr=False)

    @property
    def content_id(self) -> str:
        """Twelve hex digits that identify the version's content."""
        return hashlib.sha256(self.signed_content()).hexdigest()[:12]

    def signed_content(self) -> bytes:
        """The bytes that are signed: everything but the signature, keys sorted."""
        if self.written:
            return self.written
        values = {
            "format": FORMAT,
            "version": self.version,
            "created": self.created,
            "federation": self.federation,
            "task": self.task.to_dict(),
            "entries": [asdict(entry) for entry in self.entries],
            "signer": self.signer,
        }
        return _canonical(values)

    def to_json(self) -> bytes:
        """The file's content."""
        values = {**json.loads(self.signed_content()), "signature": self.signature}
        return json.dumps(values, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes, what: str) -> Manifest:
        """Read a manifest.

        Raises:
            BankError: no manifest, or of another format version.
        """
        try:
            values = json.loads(content)
            if values["format"] != FORMAT:
                raise BankError(f"{what}: bank format {values['format']}, this iopfl reads {FORMAT}: update iopfl")
            entries = [BankEntry(**{**entry, "role": Role(entry["role"])}) for entry in values["entries"]]
            _check_counts(entries)
            return cls(
                version=int(values["version"]),
                created=str(values["created"]),
                federation=str(values["federation"]),
                task=Task.from_dict(values["task"]),
                entries=tuple(entries),
                signer=str(values["signer"]),
                signature=str(values.pop("signature")),
                written=_canonical(values),
            )
        except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
            raise BankError(f"{what}: expected a bank's manifest: {type(error).__name__}: {error}") from error


def _check_counts(entries: Sequence[BankEntry]) -> None:
    """Raises:
    ValueError: a count that is none, or a figure that is no number.
    """
    for entry in entries:
        counts = (entry.round_index, entry.samples)
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"expected round and samples of {entry.name} from 0, given {counts}")
        if not all(type(value) in (int, float) for value in entry.metrics.values()):
            raise ValueError(f"expected numbers as metrics of {entry.name}")


def _canonical(values: Mapping[str, Any]) -> bytes:
    """A manifest's values as the bytes that are signed.

    Raises:
        ValueError: NaN or infinity among them.
    """
    return json.dumps(values, sort_keys=True, allow_nan=False).encode()


def read_manifest(folder: Path, *, version: int | None = None) -> Manifest:
    """Read the served manifest of a bank, or an older version's, without verifying the entries.

    Raises:
        BankError: no bank there, or no such version.
    """
    path = folder / MANIFEST if version is None else version_file(folder, version)
    try:
        return Manifest.from_json(path.read_bytes(), what=f"{folder.name}/{path.name}")
    except OSError as error:
        there = ", ".join(map(str, list_versions(folder))) or "none"
        wanted = "a bank" if version is None else f"version {version}"
        raise BankError(
            f"{folder}: expected {wanted} ({path.name}: {error.strerror}); versions there: {there}"
        ) from error


def list_versions(folder: Path) -> list[int]:
    """Versions that a bank still holds, ascending."""
    return sorted(int(path.stem) for path in (folder / _VERSIONS).glob("*.json") if path.stem.isdecimal())


def serve_manifest(folder: Path, manifest: Manifest) -> None:
    """Keep a manifest among the versions and make it the served one, by a rename."""
    write_bytes(version_file(folder, manifest.version), manifest.to_json())
    write_bytes(folder / MANIFEST, manifest.to_json())


def prune_bank(folder: Path, *, keep: int) -> list[int]:
    """Delete all but the newest `keep` versions and the served one, with the entries only they used.

    Returns:
        The versions deleted.
    """
    read_manifest(folder)
    with hold_folder(folder):  # else the entries of a version that arrives just now, which is not named yet, would go
        served = read_manifest(folder).version
        versions = list_versions(folder)
        doomed = [version for version in versions[: max(0, len(versions) - keep)] if version != served]
        for version in doomed:
            version_file(folder, version).unlink()
        kept = {e.file for v in list_versions(folder) for e in read_manifest(folder, version=v).entries}
        for path in folder.glob("*.safetensors"):
            if path.name not in kept:
                path.unlink()
    return doomed


def version_file(folder: Path, version: int) -> Path:
    return folder / _VERSIONS / f"{version:06d}.json"


def checked_name(entry: BankEntry, what: str) -> str:
    """An entry's file name, if it is a plain name: a manifest must not lead out of its folder."""
    if Path(entry.file).name != entry.file or not entry.file.endswith(".safetensors") or entry.file.startswith("."):
        raise BankError(f"{what}: entry {entry.name}: expected a plain .safetensors file name, given {entry.file!r}")
    return entry.file
