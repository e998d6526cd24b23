"""MONAI Label does not import beside pydicom 3.

Defect: `datastore/utils/convert.py:21` imports `pydicom_seg` 0.4.1, whose `reader.py:9`
imports `pydicom._storage_sopclass_uids`, a private module that pydicom 3 no longer has.
Upstream: issue 1841; fixed on main by pull request 1879 (highdicom instead of pydicom-seg), in no release yet.
"""

from __future__ import annotations

import sys
import types

MODULE = "pydicom._storage_sopclass_uids"


def apply() -> None:
    """Offer the one name `pydicom_seg` wants, under the module name it wants it from."""
    if MODULE in sys.modules:
        return
    from pydicom.uid import SegmentationStorage

    module = types.ModuleType(MODULE)
    module.SegmentationStorage = SegmentationStorage  # type: ignore[attr-defined]
    sys.modules[MODULE] = module
