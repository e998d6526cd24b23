"""A NIfTI whose axes lean is handed out as it is, and ITK (3D Slicer) cannot open it.

Defect: `endpoints/datastore.py:133` (`download_image`) and `download_label` send the file; ITK takes no sform with a
shear, of a registration for instance, where there is no qform. What is sent lies on a straight grid, and a label of it
too.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5, if ITK reads a shear then.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Send a copy of what ITK does not open, and of a label of that."""
    from fastapi.responses import FileResponse
    from monailabel.endpoints import datastore
    from monailabel.interfaces.utils.app import app_instance
    from starlette.background import BackgroundTask

    from iopfl.base.errors import SeriesError
    from iopfl.core.handing_out import write_straight_image, write_straight_label
    from iopfl.images.names import find_suffix
    from iopfl.images.places import find_stack

    def send(answer: Any, write: Callable[[Path, Path], bool]) -> Any:
        if not isinstance(answer, FileResponse):
            return answer
        path = Path(answer.path)
        with tempfile.NamedTemporaryFile(suffix=find_suffix(path.name) or path.suffix, delete=False) as file:
            copy = Path(file.name)
        try:
            is_written = write(path, copy)
        except BaseException:
            copy.unlink()
            raise
        if not is_written:
            copy.unlink()
            return answer
        removed = BackgroundTask(copy.unlink, missing_ok=True)
        return FileResponse(copy, media_type=answer.media_type, filename=path.name, background=removed)

    def write_image(source: Path, target: Path) -> bool:
        stack = find_stack(source)
        if stack is not None:
            write_straight_image(source, stack, target)
        return stack is not None

    def write_label(source: Path, target: Path, image: Path) -> bool:
        if find_stack(image) is None:
            return write_image(source, target)
        try:
            return write_straight_label(source, image, target)
        except SeriesError:  # damaged, or drawn for something else
            return False

    send_image, send_label = datastore.download_image, datastore.download_label

    @functools.wraps(send_image)
    def download_image(image: str, *args: Any, **kwargs: Any) -> Any:
        return send(send_image(image, *args, **kwargs), write_image)

    @functools.wraps(send_label)
    def download_label(label: str, *args: Any, **kwargs: Any) -> Any:
        answer = send_label(label, *args, **kwargs)
        if not isinstance(answer, FileResponse):
            return answer
        image = Path(app_instance().datastore().get_image_info(label).get("path", ""))  # of a PACS, it is not here
        return send(answer, functools.partial(write_label, image=image))

    datastore.download_image, datastore.download_label = download_image, download_label
