"""Which versions of which labels a training used: for whoever asks later what a model has learned from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from iopfl.base.files import write_bytes
from iopfl.labels.datastore import VersionedDatastore


def describe_used(datastore: Datastore, images: Iterable[str]) -> list[dict[str, Any]]:
    """Which versions the final labels of some images are: what a training says that it used.

    Returns:
        For each image `image`, `version` and `sha256`; empty for a datastore without versions.
    """
    if not isinstance(datastore, VersionedDatastore):
        return []
    used = []
    for image in sorted(images):
        history = datastore.history(image)
        if history.published:
            version = history.find(history.published)
            used.append({"image": image, "version": version.number, "sha256": version.sha256})
    return used


def summarize_used(used: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many labels `describe_used` named, and a digest that is another one as soon as one of them is."""
    content = json.dumps(list(used), sort_keys=True).encode()
    return {"count": len(used), "digest": hashlib.sha256(content).hexdigest()[:12]}


def write_used(path: Path, used: Sequence[Mapping[str, Any]], **about: Any) -> None:
    """Write down which labels a training used, in the state folder."""
    write_bytes(path, json.dumps({**about, **summarize_used(used), "labels": list(used)}).encode())
