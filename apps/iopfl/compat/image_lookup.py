"""Inference looks for an image in the working directory before it asks the datastore.

Defect: `interfaces/app.py:286` takes an id that exists as a path, relative to wherever
the server was started, for that file; `:289` resolves an unknown id to the empty
string, which is then read as the working directory.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.

Besides, the request that an `InferTask` sees now carries the id as `image_id`.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Let an absolute path be a file of the server's own making, and all else an id."""
    from monailabel.interfaces.app import MONAILabelApp
    from monailabel.interfaces.datastore import DefaultLabelTag
    from monailabel.interfaces.exception import ImageNotFoundException

    original = MONAILabelApp.infer

    @functools.wraps(original)
    def infer(self: Any, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        image = request.get("image")
        # Uploads and sessions come as absolute paths; `file_access` refuses those of clients.
        if not isinstance(image, str) or Path(image).is_absolute():
            return original(self, request, datastore)

        store = datastore if datastore else self.datastore()
        path = store.get_image_uri(image) if image else ""
        if not path or not Path(path).exists():
            raise ImageNotFoundException(f"no image {image!r} in the datastore")

        result = original(self, {**request, "image": path, "image_id": image}, store)
        # Upstream does not save the label of an image it was given by path.
        file = result.get("file")
        if request.get("save_label") and file and Path(file).exists():
            tag = request.get("label_tag", DefaultLabelTag.ORIGINAL.value)
            info = {"model": request.get("model"), "params": result.get("params")}
            result["label"] = store.save_label(image, file, tag, info)
        return result

    MONAILabelApp.infer = infer
