"""What the actions of `iopfl dicom` share: options, and how a table is printed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iopfl.base.errors import ConfigError

if TYPE_CHECKING:
    from iopfl.dimse.peers import TLS, Timeouts

Add = Callable[[Any, str, Callable[[Any], None], str, str], argparse.ArgumentParser]

_LONGEST_CELL = 400


def add_aet(parser: argparse.ArgumentParser) -> None:
    """Add our own AE title."""
    parser.add_argument("-aet", "--aet", default="IOPFL", metavar="AETITLE", help="our own AE title (default: IOPFL)")


def add_tls(parser: argparse.ArgumentParser) -> None:
    """Add what TLS needs."""
    parser.add_argument("--tls-ca", type=Path, metavar="PEM", help="certificates that the peer's must lead to: use TLS")
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate of our own")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="key of our certificate")


def add_timeouts(parser: argparse.ArgumentParser) -> None:
    """Add how long to wait, by the names that pynetdicom's programs have."""
    parser.add_argument(
        "-ta", "--acse-timeout", type=float, default=30, metavar="S", help="association (default: 30 s)"
    )
    parser.add_argument("-td", "--dimse-timeout", type=float, default=60, metavar="S", help="an answer (default: 60 s)")
    parser.add_argument("-tn", "--network-timeout", type=float, default=60, metavar="S", help="silence (default: 60 s)")


def build_tls(arguments: Any, name: str = "") -> TLS | None:
    """TLS as asked for.

    Raises:
        ConfigError: a certificate or key without the authority that says whom to trust.
    """
    from iopfl.dimse.peers import TLS

    if arguments.tls_ca is None:
        if arguments.tls_cert or arguments.tls_key:
            raise ConfigError("TLS needs --tls-ca too, the certificates that peers' must lead to")
        return None
    return TLS(arguments.tls_ca, arguments.tls_cert, arguments.tls_key, name)


def build_timeouts(arguments: Any) -> Timeouts:
    """Timeouts as asked for."""
    from iopfl.dimse.peers import Timeouts

    given = (arguments.acse_timeout, arguments.dimse_timeout, arguments.network_timeout)
    if min(given) <= 0:
        raise ConfigError(f"timeouts: expected seconds above 0, given {min(given):g}")
    return Timeouts(acse=given[0], dimse=given[1], network=given[2])


def print_table(rows: Iterable[Sequence[object]], header: Sequence[str]) -> None:
    """Print rows below a header, in columns; what came from others moves no cursor."""
    lines = [list(header), *([_show(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _show(cell: object) -> str:
    text = "" if cell is None else str(cell)
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_LONGEST_CELL]) or "-"
