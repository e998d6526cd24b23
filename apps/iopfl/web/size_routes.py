"""`/iopfl/sizes.csv`: how large each label is that was submitted, for all images at once."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import StreamingResponse
from monailabel.interfaces.exception import MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from starlette.types import Receive, Scope, Send

from iopfl.access.roles import for_user
from iopfl.base.errors import IOPFLError
from iopfl.base.stamps import Stamp, find_stamp
from iopfl.core.measuring import Measurement, find_affine, measure
from iopfl.core.task import Task
from iopfl.core.transforms import read_image, read_label
from iopfl.labels.checked import FINAL, is_labeled_for
from iopfl.labels.datastore import VersionedDatastore

_COLUMNS = ("image", "task", "label", "volume_ml", "long_axis_mm", "pixels", "long_axis_pixels")
_OF_VERSION = ("model", "bank", "quality", "version", "date", "problem")
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Disposition": 'attachment; filename="sizes.csv"',
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would compute a cell that begins so."""
_KEPT = 20_000
_slots = threading.BoundedSemaphore(2)
"""Tables that may be made at once: each holds a thread of the server, and a volume with its label."""
_measured: dict[tuple[str, Stamp | None, str], list[Measurement]] = {}

router = APIRouter(prefix="/iopfl", tags=["iopfl"], dependencies=[Depends(for_user)])


@router.get("/sizes.csv", summary="Volume and long axis of each label of all final labels, as a table")
def sizes(task: str = "") -> StreamingResponse:
    """A line for each label of each image that is labeled, of one task or of all.

    `model`, `bank` and `quality` are those of the answer that a label started from; `problem` says why a label
    cannot be measured.
    """
    app = app_instance()
    if task and task not in app.models.tasks:
        raise HTTPException(404, f"no task {task!r}: this server has {', '.join(app.models.tasks) or 'none'}")
    images = sorted(app.datastore().get_labeled_images())
    lines = _lines(app.datastore(), list(app.models.tasks.values()), task, images)
    if not _slots.acquire(blocking=False):
        raise HTTPException(503, "others ask for all sizes just now: try again in a moment", {"Retry-After": "5"})
    return _Table(lines, media_type="text/csv", headers=_HEADERS)


class _Table(StreamingResponse):
    """Gives its slot back however it ends, also before a first line was asked for."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _slots.release()


def _lines(store: VersionedDatastore, tasks: list[Task], asked: str, images: list[str]) -> Iterator[str]:
    buffer = io.StringIO(newline="")
    table = csv.DictWriter(buffer, (*_COLUMNS, *_OF_VERSION))
    table.writeheader()
    for image in images:
        rows = [row for task in tasks for row in _rows(store, image, task)]
        read = [row for row in rows if "problem" not in row]  # a label whose task is not known is one task's
        for row in read or rows:
            if asked in ("", row["task"]):
                table.writerow({key: _plain(value) for key, value in row.items()})
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


def _rows(store: VersionedDatastore, image: str, task: Task) -> list[dict[str, Any]]:
    """Rows of an image's final label for a task; one with a problem where it cannot be read."""
    row: dict[str, Any] = {"image": image, "task": task.name}
    try:
        if task not in store.tasks_for(image) or not is_labeled_for(store, image, task.name):
            return []
        history = store.history(image)
        selected = store.rule.select(history)
        if version := selected[0] if len(selected) == 1 else history.get(history.published or 0):
            row |= {"version": version.number, "date": version.when}
            row |= {key: version.origin.get(key) for key in ("model", "bank", "quality")}
        found = _measure(Path(store.get_image_uri(image)), Path(store.get_label_uri(image, FINAL)), task)
    except (IOPFLError, MONAILabelException) as error:
        return [{**row, "problem": getattr(error, "msg", None) or str(error)}]
    except OSError:
        return [{**row, "problem": "the label could not be read"}]
    return [{**row, "label": size.label, **size.to_params()} for size in found]


def _measure(image: Path, label: Path, task: Task) -> list[Measurement]:
    """Measured once for each content of a label, so that who asks twice does not wait twice."""
    key = (str(label), find_stamp(label), task.name)
    if key not in _measured:
        source = read_image(image, task)
        classes = read_label(label, task, like=source).as_tensor()[0].byte().numpy()
        places = {name: index for index, name in enumerate(task.labels, start=1)}
        if len(_measured) >= _KEPT:
            _measured.clear()
        _measured[key] = measure(classes, places, find_affine(source.affine.numpy(), classes.shape))
    return _measured[key]


def _plain(value: Any) -> Any:
    """A value that a spreadsheet takes for text or a number: whoever names an image writes no formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
