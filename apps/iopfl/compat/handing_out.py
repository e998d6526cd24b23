"""Images and labels of a folder are handed out as they are: as ITK cannot open, or with values that are no task's.

Defect: `endpoints/datastore.py:133` (`download_image`), `download_label` and `endpoints/session.py:38` send the file.
ITK (3D Slicer) takes no sform with a shear, of a registration for instance, where there is no qform, nor a NIfTI-2; and
a label that says by names what its voxels are is shown by its values. What is sent is a copy (`core/handing_out.py`).
Upstream: issue 35 (ITK refuses a mask), closed; not reported for images or for names.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Send a copy of what viewers would not open, or not show as it is meant."""
    from fastapi.responses import FileResponse
    from monailabel.endpoints import datastore, session
    from monailabel.interfaces.utils.app import app_instance
    from starlette.background import BackgroundTask

    from iopfl.core.handing_out import copy_image

    def send(answer: Any, copy: Path | None) -> Any:
        if copy is None:
            return answer
        removed, name = BackgroundTask(copy.unlink, missing_ok=True), Path(answer.path).name
        return FileResponse(copy, media_type=answer.media_type, filename=name, background=removed)

    send_image, send_label, send_session = datastore.download_image, datastore.download_label, session.get_session

    @functools.wraps(send_image)
    def download_image(image: str, *args: Any, **kwargs: Any) -> Any:
        answer = send_image(image, *args, **kwargs)
        return send(answer, copy_image(Path(answer.path))) if isinstance(answer, FileResponse) else answer

    @functools.wraps(send_label)
    def download_label(label: str, tag: str, *args: Any, **kwargs: Any) -> Any:
        answer = send_label(label, tag, *args, **kwargs)
        if not isinstance(answer, FileResponse):
            return answer
        store = app_instance().datastore()
        tasks = store.get_label_info(label, tag).get("tasks", ())
        return send(answer, store.copy_label(label, Path(answer.path), tasks))

    @functools.wraps(send_session)
    def get_session(*args: Any, **kwargs: Any) -> Any:
        answer = send_session(*args, **kwargs)
        return send(answer, copy_image(Path(answer.path))) if isinstance(answer, FileResponse) else answer

    datastore.download_image, datastore.download_label = download_image, download_label
    session.get_session = get_session
