"""The process that runs FLARE's simulator; `simulate` starts it as `python -m fl_bridge.simulator_process`.

It goes when its parent goes, however that ended, and takes its clients and the run directory along.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
from nvflare.private.fed.app.simulator import simulator_runner
from nvflare.private.fed.app.simulator.simulator import define_simulator_parser, run_simulator

from fl_bridge.process_tree import end_family

_reserved: list[socket.socket] = []
"""Bound for as long as the process lives, and never listening."""


def reserve_ports(number: int) -> list[int]:
    """Free ports that the system gives to nobody else from now on.

    FLARE's own function lets go of a port at once, and the client's process listens there seconds later: what another
    client or program was given meanwhile is not free any more, and the client is lost. With `SO_REUSEADDR`, which
    `multiprocessing` sets where it listens, both may be bound.

    Args:
        number: how many ports, for which a `multiprocessing` listener is meant.
    """
    ports = []
    for _ in range(number):
        reservation = socket.socket()
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("localhost", 0))
        _reserved.append(reservation)
        ports.append(reservation.getsockname()[1])
    return ports


def _end_with(parent: int, scratch: Path) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    end_family(psutil.Process().children(recursive=True))
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def main() -> int:
    """Run the simulator with FLARE's own arguments."""
    parser = argparse.ArgumentParser()
    define_simulator_parser(parser)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    watch = threading.Thread(target=_end_with, args=(arguments.parent, Path(arguments.job_folder).parent), daemon=True)
    watch.start()
    simulator_runner.get_open_ports = reserve_ports
    try:
        return run_simulator(arguments)
    finally:
        if os.getppid() != arguments.parent:
            watch.join()  # FLARE ends, one way or another, when its processes are killed: the run directory is next


if __name__ == "__main__":
    sys.exit(main())
