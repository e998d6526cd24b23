"""Modules under the names that they had before they moved, for scripts of others. Ends with 0.2."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "iopfl.images.headers": "iopfl.images.headers",
    "iopfl.core.bank.exchange": "iopfl.core.bank.exchange",
    "iopfl.images.exif": "iopfl.images.exif",
    "iopfl.images.notes": "iopfl.images.notes",
    "iopfl.images.files": "iopfl.images.files",
    "iopfl.core.bank.manifest": "iopfl.core.bank.manifest",
    "iopfl.images.places": "iopfl.images.places",
    "iopfl.core.site_rounds": "iopfl.core.site_rounds",
    "iopfl.images.segment_files": "iopfl.images.segment_files",
    "iopfl.core.bank.signing": "iopfl.core.bank.signing",
    "iopfl.pacs.datastore": "iopfl.pacs.datastore",
    "iopfl.labels.final_rule": "iopfl.labels.final_rule",
    "iopfl.labels.folder": "iopfl.labels.folder",
    "iopfl.labels.datastore": "iopfl.labels.datastore",
    "iopfl.pacs.access": "iopfl.pacs.access",
    "iopfl.lib.federation_rounds": "iopfl.lib.federation_rounds",
    "iopfl.labels.submissions": "iopfl.labels.submissions",
    "iopfl.labels.versions": "iopfl.labels.versions",
}


class _Finder(MetaPathFinder, Loader):
    """Finds the module itself under an old name, so that there are never two of a class."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is {new} since 0.1: import it from there", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It has run already; the name that it is known by stays its own."""
        spec = module.__spec__
        if spec is not None and spec.loader_state is not None:
            module.__spec__ = spec.loader_state


def install() -> None:
    """Have the old names found, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
