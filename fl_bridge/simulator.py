"""The process that runs FLARE's simulator; `simulate` starts it as `python -m fl_bridge.simulator`.

It goes when its parent goes, however that ended, and takes its clients and the run directory along.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import psutil
from nvflare.private.fed.app.simulator.simulator import define_simulator_parser, run_simulator


def end_tree(pid: int) -> None:
    """Kill a process and all that descend from it; state is written atomically, so nothing is lost."""
    try:
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    end_family(family)


def end_family(family: list[psutil.Process]) -> None:
    """Kill processes, and wait until they are gone."""
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)


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
    try:
        return run_simulator(arguments)
    finally:
        if os.getppid() != arguments.parent:
            watch.join()  # FLARE ends, one way or another, when its processes are killed: the run directory is next


if __name__ == "__main__":
    sys.exit(main())
