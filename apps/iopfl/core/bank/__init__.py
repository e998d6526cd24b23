"""The model bank as folders and files: opened and written, its manifest, its signature, its way between sites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iopfl.core.bank.bank import ModelBank, save_bank
    from iopfl.core.bank.manifest import BankEntry, Manifest, Model, Role, read_manifest
    from iopfl.core.bank.signing import Keyring

_WHERE = {
    "ModelBank": "bank",
    "save_bank": "bank",
    "BankEntry": "manifest",
    "Manifest": "manifest",
    "Model": "manifest",
    "Role": "manifest",
    "read_manifest": "manifest",
    "Keyring": "signing",
}

__all__ = ["BankEntry", "Keyring", "Manifest", "Model", "ModelBank", "Role", "read_manifest", "save_bank"]


def __getattr__(name: str) -> Any:
    """Import on first use: who only checks a signature needs no torch."""
    from importlib import import_module

    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
