"""MONAI Label's app, put right where 0.8.5 goes wrong; `iopfl.app` is ours on top of it.

Of `interfaces/app.py`:

- `:286` takes an id that exists as a path, relative to wherever the server was started, for that file, and `:289`
  resolves an unknown id to the empty string, which is then read as the working directory.
- As many inferences run at once as there are requests, and memory ends before they do (`config.py:96`).
- `:464`, `:427` and `:473` score anew at each sample, with a queue that has no bound, each in a process of its own.
- `:176` fetches dcmqi over the network, so that a server without internet does not start. Nothing here needs it.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.utils.async_tasks import utils

from iopfl.base.running import running
from iopfl.labels.annotators import find_annotator
from iopfl.lib.inference_queue import InferenceQueue

SENT = "(sent with the request)"
"""In place of a name: an upload or a session's image, which may be called by a patient's name."""

_UNFINISHED = ("SUBMITTED", "RUNNING")


class BaseApp(MONAILabelApp):
    """An app that looks images up by their ids alone, lets inferences take turns, and queues scoring once."""

    _queue: InferenceQueue | None = None

    def on_init_complete(self) -> None:
        """In the server, not in its children, which infer for one request: from now on, inferences take turns."""
        super().on_init_complete()
        self._queue = InferenceQueue(max(1, settings.MONAI_LABEL_INFER_CONCURRENCY))

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Infer when it is this request's turn; the infer task is given the id too, as `image_id`.

        Raises:
            ImageNotFoundException: no image of this id.
            BusyError: too many wait already.
        """
        with ExitStack() as stack:
            if self._queue is not None:
                who = find_annotator(request)  # where people sign in, nobody waits under another's name or under many
                stack.enter_context(running.follow(str(request.get("model")), _name(request), who))
                stack.enter_context(self._queue.turn(who))
            return self._look_up_and_infer(request, datastore)

    def infer_wsi(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Infer on an image as on any other: MONAI Label takes each TIFF for a slide of pathology, and fails without
        OpenSlide (`interfaces/utils/wsi.py:42`), which nothing here needs."""
        return self.infer(request, datastore)

    def _look_up_and_infer(self, request: dict[str, Any], datastore: Datastore | None) -> dict[str, Any]:
        image = request.get("image")
        # Uploads and sessions are absolute paths; `file_access` refuses those of clients.
        if not isinstance(image, str) or Path(image).is_absolute():
            return super().infer(request, datastore)
        store = datastore or self.datastore()
        path = store.get_image_uri(image) if image else ""
        if not path or not Path(path).exists():
            raise ImageNotFoundException(f"no image {image!r} in the datastore")
        result = super().infer({**request, "image": path, "image_id": image}, store)
        # The label of an image that was given by path is not saved there.
        file = result.get("file")
        if request.get("save_label") and file and Path(file).exists():
            tag = request.get("label_tag", DefaultLabelTag.ORIGINAL.value)
            info = {"model": request.get("model"), "params": result.get("params")}
            result["label"] = store.save_label(image, file, tag, info)
        return result

    def async_scoring(self, method: str | None, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Queue a run of all scoring methods only if none waits or runs."""
        if method is None and any(task["status"] in _UNFINISHED for task in utils.tasks("scoring")):
            return {}
        return super().async_scoring(method, params)

    def _download_dcmqi_tools(self) -> None:
        """Leave dcmqi alone."""


def _name(request: dict[str, Any]) -> str:
    """What everybody reads of an image: an id, never where a file lies that somebody sent, nor its name."""
    image = str(request.get("image") or "")
    return SENT if "/" in image else image
