"""The command `iopfl`: `commands` holds the list, each other module the actions of one command."""

from iopfl.cli.commands import build_parser, main

__all__ = ["build_parser", "main"]
