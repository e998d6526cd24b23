"""The process of a background task that is one of many: it has imported all it needs before it is told what to do.

One line on stdin, a task's method and request, is what it waits for (`background_processes`).
"""

from __future__ import annotations

import json
import select
import sys
from pathlib import Path

IDLE_SECONDS = 3600.0
"""After so long without a task the process ends; the next task then starts cold."""


def main() -> None:
    """Import, wait, and run one task."""
    from monailabel.config import settings
    from monailabel.interfaces.utils import app
    from monailabel.utils.others.class_utils import get_class_of_subclass_from_file

    main_file = str(Path(settings.MONAI_LABEL_APP_DIR, "main.py"))
    get_class_of_subclass_from_file("main", main_file, "MONAILabelApp")
    if not select.select([sys.stdin], [], [], IDLE_SECONDS)[0]:
        return
    line = sys.stdin.readline()
    if not line:  # whoever started this process is gone
        return
    order = json.loads(line)
    sys.argv[1:] = ["-m", order["method"], "-r", json.dumps(order["request"])]
    app.run_main()


if __name__ == "__main__":
    main()
