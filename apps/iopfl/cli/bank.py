"""The actions of `iopfl bank`; each imports what it needs, so that `--help` need not wait for torch and MONAI."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iopfl.core.bank.manifest import Manifest

AddAction = Callable[[str, Callable[[Any], None], str, str], argparse.ArgumentParser]


def add_actions(add: AddAction, add_keys: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add every action to the parser of `iopfl bank`."""
    show = add("show", _show, "What is in a bank.", "iopfl bank show bank/")
    verify = add("verify", _verify, "Check signature, checksums and weights.", "iopfl bank verify bank/")
    difference = add("diff", _diff, "What differs between two banks or versions.", "iopfl bank diff bank/ other/")
    rollback = add("rollback", _rollback, "Serve an older version again.", "iopfl bank rollback bank/ 3")
    prune = add("prune", _prune, "Delete old versions.", "iopfl bank prune bank/ --keep 3")
    export = add("export", _export, "Write one .iopfl file.", "iopfl bank export bank/ prostate.iopfl")
    importer = add("import", _import, "Take in an .iopfl file.", "iopfl bank import prostate.iopfl bank/")
    pull = add(
        "pull",
        _pull,
        "Get a bank from a server, if it has a newer one.",
        "iopfl bank pull https://SERVER/iopfl/banks/prostate.iopfl bank/",
    )
    trust = add("trust", _trust, "Trust a signer's banks.", "iopfl bank trust KEY --note 'the consortium'")
    key = add("key", _key, "Print one's own public key.", "iopfl bank key")
    for parser in (show, verify, rollback, prune, export):
        parser.add_argument("bank", type=Path, help="folder of a bank")
    for parser in (show, verify, difference):
        parser.add_argument("--json", action="store_true", help="for programs")
    difference.add_argument("first", type=Path, help="folder of a bank")
    difference.add_argument("second", type=Path, help="folder of a bank; the same, to compare versions")
    difference.add_argument("--versions", type=int, nargs=2, metavar=("A", "B"), help="the first and the second")
    rollback.add_argument("version", type=int)
    prune.add_argument("--keep", type=int, default=3, help="newest versions to keep (default: %(default)s)")
    export.add_argument("target", type=Path, help="new file, ending in .iopfl")
    importer.add_argument("source", type=Path, help=".iopfl file")
    importer.add_argument("bank", type=Path, help="folder of a bank, new or not")
    pull.add_argument("url", help="https:// address of an .iopfl file")
    pull.add_argument("bank", type=Path, help="folder of a bank, new or not")
    pull.add_argument("--task", help="task that it must be for: a name or a YAML file")
    pull.add_argument("--token-file", type=Path, help="file with a bearer token, where the server asks for one")
    pull.add_argument("--ca", type=Path, metavar="FILE", help="authority of the server's certificate (a public one)")
    trust.add_argument("key", help="public key, 44 characters")
    trust.add_argument("--note", default="", help="who that is")
    for parser in (verify, importer, pull, trust, key):
        add_keys(parser)


def _show(arguments: Any) -> None:
    from iopfl.core.bank.manifest import list_versions, read_manifest

    manifest = read_manifest(arguments.bank)
    if arguments.json:
        print(manifest.to_json().decode())
        return
    _print_manifest(manifest)
    print(f"versions here: {', '.join(map(str, list_versions(arguments.bank)))}")


def _print_manifest(manifest: Manifest) -> None:
    print(f"bank of task {manifest.task.name}, version {manifest.version}-{manifest.content_id}, {manifest.created}")
    print(f"federation {manifest.federation}, signed by {manifest.signer}")
    print(f"{'expert':<20}{'role':<14}{'round':>6}{'samples':>9}  validation")
    for entry in manifest.entries:
        metrics = ", ".join(f"{key} {value:.3f}" for key, value in sorted(entry.metrics.items()))
        print(f"{entry.name:<20}{entry.role:<14}{entry.round_index:>6}{entry.samples:>9}  {metrics}")


def _verify(arguments: Any) -> None:
    from iopfl.core.bank.manifest import read_manifest

    read_manifest(arguments.bank)
    from iopfl.core.bank.bank import ModelBank  # torch, after the mistakes that need no computing to be found
    from iopfl.core.bank.signing import Keyring

    bank = ModelBank.open(arguments.bank, keys=Keyring(arguments.keys))
    if arguments.json:
        print(json.dumps({"bank": bank.label, "experts": bank.names, "signer": bank.manifest.signer}))
    else:
        print(f"{arguments.bank}: version {bank.label} is whole: {len(bank)} experts, signed by {bank.manifest.signer}")


def _diff(arguments: Any) -> None:
    from iopfl.core.bank.manifest import read_manifest

    versions = arguments.versions or (None, None)
    folders = (arguments.first, arguments.second)
    for folder, version in zip(folders, versions, strict=True):
        read_manifest(folder, version=version)
    from iopfl.core.bank.bank import ModelBank
    from iopfl.core.bank.exchange import diff_banks

    banks = [ModelBank.open(folder, version=version) for folder, version in zip(folders, versions, strict=True)]
    difference = diff_banks(*banks)
    if arguments.json:
        print(json.dumps(difference))
        return
    if not any(difference.values()):
        print("no difference")
    for what, found in difference.items():
        if found:
            print(f"{what}: {', '.join(found) if isinstance(found, list) else json.dumps(found)}")


def _rollback(arguments: Any) -> None:
    from iopfl.core.bank.manifest import read_manifest

    read_manifest(arguments.bank, version=arguments.version)
    from iopfl.core.bank.exchange import rollback_bank

    print(f"serving version {rollback_bank(arguments.bank, arguments.version).label}")


def _prune(arguments: Any) -> None:
    from iopfl.core.bank.manifest import prune_bank

    deleted = prune_bank(arguments.bank, keep=arguments.keep)
    print(f"deleted versions {', '.join(map(str, deleted)) or 'none'}")


def _export(arguments: Any) -> None:
    from iopfl.core.bank.manifest import read_manifest

    read_manifest(arguments.bank)
    from iopfl.core.bank.exchange import export_bank

    bank = export_bank(arguments.bank, arguments.target)
    print(f"{arguments.target}: version {bank.label}; its signer's key is {bank.manifest.signer}")


def _import(arguments: Any) -> None:
    from iopfl.core.bank.exchange import import_bank
    from iopfl.core.bank.signing import Keyring

    bank = import_bank(arguments.source, arguments.bank, keys=Keyring(arguments.keys))
    print(f"{arguments.bank}: serving version {bank.label} of task {bank.task.name}")


def _pull(arguments: Any) -> None:
    from iopfl.cli.pull import pull_bank
    from iopfl.core.bank.signing import Keyring
    from iopfl.core.task import read_task

    task = read_task(arguments.task) if arguments.task else None
    asked = {"task": task, "token_file": arguments.token_file, "ca": arguments.ca}
    is_new = pull_bank(arguments.url, arguments.bank, keys=Keyring(arguments.keys), **asked)
    print(f"{arguments.bank}: {'serving the new version' if is_new else 'nothing new'}")


def _trust(arguments: Any) -> None:
    from iopfl.core.bank.signing import Keyring

    Keyring(arguments.keys).trust(arguments.key, arguments.note)
    print(f"trusting {arguments.key}")


def _key(arguments: Any) -> None:
    from iopfl.core.bank.signing import Keyring

    print(Keyring(arguments.keys).public_key)
