"""The process of background tasks that are many alike: it imports once, and does one after another.

A task is one line on stdin, its method and request; after it comes one line on stdout that begins with `END`
and holds the exit status (`background_processes`).
"""

from __future__ import annotations

import json
import select
import sys
from pathlib import Path

END = "\x04task ended with "
IDLE_SECONDS = 3600.0
"""After so long without a task the process ends; the next task then starts cold."""


def main() -> None:
    """Import, then run tasks until stdin is closed: whoever started this process is gone, or wants it to go."""
    from monailabel.config import settings
    from monailabel.interfaces.utils import app
    from monailabel.utils.others.class_utils import get_class_of_subclass_from_file

    main_file = str(Path(settings.MONAI_LABEL_APP_DIR, "main.py"))
    get_class_of_subclass_from_file("main", main_file, "MONAILabelApp")
    while select.select([sys.stdin], [], [], IDLE_SECONDS)[0] and (line := sys.stdin.readline()):
        order = json.loads(line)
        sys.argv[1:] = ["-m", order["method"], "-r", json.dumps(order["request"])]
        status = 0
        try:
            app.run_main()
        except Exception:
            sys.excepthook(*sys.exc_info())
            status = 1
        print(f"{END}{status}", flush=True)  # noqa: T201  # the protocol


if __name__ == "__main__":
    main()
