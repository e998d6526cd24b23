"""`fl-bridge`: thin; every command calls one function. Results on stdout, all else on stderr."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from fl_bridge.cli_production import add_commands
from iopfl.base.errors import IOPFLError
from iopfl.base.files import keep_others_out

_INTERRUPTED = 130
_SIMULATE_EXAMPLE = """example:
  fl-bridge simulate --data sites/ --task vessel --outside CHASE_DB1 --rounds 20 --out bank/

Interrupted, the same command goes on where it stopped. With more --rounds it goes on from those it has.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 2 on bad input, 130 when interrupted."""
    arguments = _build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    keep_others_out()
    logging.getLogger("monai").setLevel(logging.ERROR)  # else it tells of every optional package that is absent
    try:
        with _interruptible():
            return arguments.run(arguments)
    except IOPFLError as error:
        print(f"fl-bridge: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written to
        print(f"fl-bridge: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fl-bridge: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return _INTERRUPTED


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fl-bridge", description="Federations of sites, and the banks they make.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_simulate(commands)
    add_commands(commands)
    return parser


def _add_simulate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "simulate",
        help="a whole federation on this machine",
        description="Train a federation of the sites in a folder on this machine, and make its bank.",
        epilog=_SIMULATE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of site folders")
    parser.add_argument("--task", required=True, help="name of a built-in task, or a YAML file")
    parser.add_argument("--outside", action="append", default=[], metavar="SITE", help="takes no part; may be repeated")
    parser.add_argument("--rounds", type=int, required=True, metavar="N", help="rounds in all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the bank")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed and data, same weights (0)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="state folder (OUT.state beside the bank)")
    parser.add_argument("--keys", type=Path, metavar="DIR", help="folder of the signing keys (the user's own)")
    parser.add_argument("--device", default="cpu", help="where sites train: cpu or cuda (cpu)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="sites that train at once, a core each (2)")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.set_defaults(run=_simulate)


def _simulate(arguments: argparse.Namespace) -> int:
    from fl_bridge.describing import describe_site
    from iopfl.core.task import read_task

    task = read_task(arguments.task)
    from fl_bridge.simulate import simulate  # torch and FLARE, after the mistakes that need neither to be found

    done = simulate(
        arguments.data,
        task,
        outside=arguments.outside,
        rounds=arguments.rounds,
        bank=arguments.out,
        seed=arguments.seed,
        state=arguments.state,
        keys=arguments.keys,
        device=arguments.device,
        threads=arguments.threads,
    )
    if arguments.json:
        print(json.dumps(vars(done), default=str))
        return 0
    print(f"bank {done.bank} version {done.version}: {done.rounds} rounds, {done.seconds:.0f} s")
    width = max(map(len, done.sites), default=0)
    for site, fate in sorted(done.sites.items()):
        print(f"  {site:{width}}  {describe_site(dict(fate))}")
    return 0


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that nothing it started is left."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
