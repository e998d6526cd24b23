"""Modules under the names that they had before they moved: those that scripts of others import. Ends with 0.2."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "iopfl.base.image_headers": "iopfl.images.headers",
    "iopfl.core.bank_exchange": "iopfl.core.bank.exchange",
    "iopfl.core.exif": "iopfl.images.exif",
    "iopfl.core.file_notes": "iopfl.images.notes",
    "iopfl.core.image_files": "iopfl.images.files",
    "iopfl.core.manifest": "iopfl.core.bank.manifest",
    "iopfl.core.places": "iopfl.images.places",
    "iopfl.core.rounds": "iopfl.core.site_rounds",
    "iopfl.core.segment_files": "iopfl.images.segment_files",
    "iopfl.core.signing": "iopfl.core.bank.signing",
    "iopfl.lib.dicomweb": "iopfl.pacs.datastore",
    "iopfl.lib.final_labels": "iopfl.labels.final_rule",
    "iopfl.lib.folder": "iopfl.labels.folder",
    "iopfl.lib.label_store": "iopfl.labels.datastore",
    "iopfl.lib.pacs": "iopfl.pacs.access",
    "iopfl.lib.rounds": "iopfl.lib.federation_rounds",
    "iopfl.lib.submissions": "iopfl.labels.submissions",
    "iopfl.lib.versions": "iopfl.labels.versions",
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
