"""A NIfTI whose axes lean is handed out as it is, and ITK (3D Slicer) cannot open it.

Defect: `endpoints/datastore.py:133` (`download_image`) and `download_label` send the file; ITK takes no sform with a
shear, of a registration for instance, where there is no qform. What is sent has one, of right angles, beside it.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5, if ITK reads a shear then.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Send a copy with a qform of what ITK does not open."""
    from fastapi.responses import FileResponse
    from monailabel.endpoints import datastore
    from starlette.background import BackgroundTask

    from iopfl.base.errors import SeriesError
    from iopfl.core.places import is_opened_by_itk, write_upright

    def send(answer: Any) -> Any:
        path = Path(answer.path) if isinstance(answer, FileResponse) else Path()
        if not path.name.lower().endswith((".nii", ".nii.gz")) or is_opened_by_itk(path):
            return answer
        suffix = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
        with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as file:
            copy = Path(file.name)
        try:
            write_upright(path, copy)
        except SeriesError:  # damaged
            copy.unlink()
            return answer
        removed = BackgroundTask(copy.unlink, missing_ok=True)
        return FileResponse(copy, media_type=answer.media_type, filename=path.name, background=removed)

    for name in ("download_image", "download_label"):
        original = getattr(datastore, name)

        def sending(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            return send(original(*args, **kwargs))

        setattr(datastore, name, functools.wraps(original)(sending))
