"""Concurrent requests break the local datastore's index: "dictionary changed size during iteration".

Defect: `datastore/local.py:643` changes the index from the folder watcher's thread (`:415`) while
requests read it; `:687` writes the index file in place; with the watcher off, a child process's
labels and files copied in by hand are never seen, and the next save forgets them; a NaN among
an image's facts makes `GET /datastore/` answer 500.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from iopfl.compat._patching import once
from iopfl.compat.train_stats import finite

# These read whole files and reach the index through other public methods.
UNLOCKED = ("get_image", "get_label", "get_dataset_archive")

CLOCK_TICK_SECONDS = 0.05
"""A folder changed so recently may change again without a new time stamp."""


@once
def apply() -> None:
    """Guard the index by a lock, and look for changes on disk whenever it is used."""
    from monailabel.datastore.local import LocalDatastore

    LocalDatastore.__init__ = _without_watcher(LocalDatastore.__init__)
    LocalDatastore._update_datastore_file = _write_index
    for name, method in list(vars(LocalDatastore).items()):
        if inspect.isfunction(method) and not name.startswith("_") and name not in UNLOCKED:
            setattr(LocalDatastore, name, _locked(method))


def _without_watcher(original: Callable) -> Callable:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        bound.arguments["auto_reload"] = False
        self._index_lock = threading.RLock()
        self._index_in_use = False
        self._index_seen = ()
        self._index_names = frozenset()
        self._index_follows_disk = not bound.arguments["read_only"]
        original(*bound.args, **bound.kwargs)

    return init


def _locked(method: Callable) -> Callable:
    """Let one thread at a time into a public method, with an index that matches the disk."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._index_lock:
            if self._index_in_use:  # called by another public method
                return method(self, *args, **kwargs)
            self._index_in_use = True
            try:
                _catch_up(self)
                return method(self, *args, **kwargs)
            finally:
                self._index_in_use = False

    return call


def _catch_up(store: Any) -> None:
    """Take in what other processes changed; costs a few `stat` calls when they did not."""
    index = Path(store._datastore_config_path)
    if index.exists() and index.stat().st_mtime != store._config_ts:
        store._init_from_datastore_file()
    if not store._index_follows_disk:
        return
    stamps = tuple((path, Path(path).stat().st_mtime) for path in _folders(store))
    if stamps == store._index_seen:
        return
    names = frozenset((folder, name) for folder, _ in stamps for name in store._list_files(folder, store._extensions))
    if names != store._index_names:
        store._reconcile_datastore()
        store._index_names = names
    settled = max(stamp for _, stamp in stamps) < time.time() - CLOCK_TICK_SECONDS
    store._index_seen = stamps if settled else ()


def _folders(store: Any) -> list[str]:
    """List the folder of images and those of labels, one a tag."""
    labels = Path(store._datastore.label_path(None))
    labels.mkdir(parents=True, exist_ok=True)
    tags = [str(folder) for folder in labels.iterdir() if folder.is_dir()]
    return [store._datastore.image_path(), str(labels), *sorted(tags)]


def _write_index(self: Any, lock: bool = True) -> None:
    """Write the index so that a reader, or a crash, finds the old one or the new one."""
    from filelock import FileLock

    index = Path(self._datastore_config_path)
    temporary = index.with_name(f"{index.name}.{os.getpid()}.tmp")
    with FileLock(self._lock_file) if lock else nullcontext():
        for entry in self._datastore.objects.values():
            for item in (entry.image, *entry.labels.values()):
                item.info = finite(item.info)  # a NaN would make every listing fail
        content = self._datastore.model_dump(exclude={"base_path"})
        temporary.write_text(json.dumps(content, indent=2, default=str))
        temporary.replace(index)
        self._config_ts = index.stat().st_mtime
