"""First on the path of what tests start: a program finds what requirements.txt lists, as on a machine that has no more.

Python imports this at its start. The names that are refused are in `IOPFL_TEST_REFUSED` (`runtime_list.py`).
"""

import os
import sys
from importlib.machinery import PathFinder

REFUSED = frozenset(os.environ.get("IOPFL_TEST_REFUSED", "").split())


class _Listed(PathFinder):
    """Finds as Python does, but for what is refused: also who only asks whether it is there is told that it is not."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in REFUSED else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = _Listed
