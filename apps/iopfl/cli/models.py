"""Which model answers: the options of the commands that segment, and what they open."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iopfl.core.predictor import Predictor


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model answers."""
    kinds = ("global", "personalized", "average", "published", "routed")
    add_bank(parser, bank="folder of a bank", site="whose personalized model (default: none, an outside site)")
    parser.add_argument("--model", choices=kinds, help="default: what the site's validation labels favor")
    parser.add_argument("--quality", action="store_true", help="agreement of the experts with each answer")
    parser.add_argument("--json", action="store_true", help="for programs")


def add_bank(parser: argparse.ArgumentParser, *, bank: str, site: str) -> None:
    """Which bank is opened, for which site, and where it runs.

    Args:
        parser: the parser of the command.
        bank: help on `--bank`.
        site: help on `--site`.
    """
    from iopfl.server_options import add_limits

    parser.add_argument("--bank", type=Path, required=True, help=bank)
    parser.add_argument("--task", help="task of the bank: a name or a YAML file (default: the bank's)")
    parser.add_argument("--site", default="", help=site)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add_limits(parser)
    add_keys(parser)


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Where the keyring is."""
    from iopfl.core.bank.signing import default_keys

    parser.add_argument(
        "--keys", type=Path, default=default_keys(), help="folder of the keyring (default: %(default)s)"
    )


def open_predictor(arguments: Any) -> Predictor:
    """Open the bank that the options name.

    Raises:
        BankError: it cannot be opened, or is signed by somebody unknown.
        ConfigError: the task or the device is none.
    """
    from iopfl.core.bank.manifest import read_manifest
    from iopfl.core.bank.signing import Keyring
    from iopfl.core.task import read_task

    task = read_task(arguments.task) if arguments.task else None
    read_manifest(arguments.bank)
    from iopfl.core.bank.bank import ModelBank  # torch, after the mistakes that need no computing to be found
    from iopfl.core.memory import limit_to
    from iopfl.core.predictor import Predictor
    from iopfl.lib.settings import check_device

    limit_to(arguments.max_memory_gb)
    bank = ModelBank.open(arguments.bank, task=task, keys=Keyring(arguments.keys))
    return Predictor(
        bank,
        site=arguments.site or None,
        task=task,
        device=check_device(arguments.device),
        budget=arguments.answer_seconds,
    )
