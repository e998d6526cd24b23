"""The process that runs FLARE's simulator; `simulate` starts it as `python -m fl_bridge.simulator_process`.

It goes when its parent goes, however that ended, and takes its clients and the run directory along.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import psutil
from nvflare.private.fed.app.simulator.simulator import define_simulator_parser, run_simulator

from fl_bridge.process_tree import end_family


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
