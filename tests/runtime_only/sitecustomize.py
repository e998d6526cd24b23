"""First on the path of what tests start: a program finds what requirements.txt lists, as on a machine that has no more.

Python imports this at its start. The names that are refused are in `IOPFL_TEST_REFUSED` (`runtime_list.py`).
"""

import os
import sys
from importlib.abc import MetaPathFinder

REFUSED = frozenset(os.environ.get("IOPFL_TEST_REFUSED", "").split())


class _Refusal(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r} in what requirements.txt lists", name=name)


sys.meta_path.insert(0, _Refusal())
