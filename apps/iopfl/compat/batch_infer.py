"""Batch inference divides by zero without a GPU, and one bad image ends all of it.

Defect: `interfaces/tasks/batch_infer.py:86` takes `index % len(devices)` of an empty list,
because `multi_gpu` is on by default; `:117` lets the first error end the run when one
worker runs, while with several workers (`:108`) it goes on. Neither says at the end what failed.
Upstream: not reported.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from iopfl.base.errors import IOPFLError, SeriesError
from iopfl.compat._patching import once

logger = logging.getLogger(__name__)


@once
def apply() -> None:
    """Use the one device there is, and go on after an image that fails."""
    import torch
    from monailabel.interfaces.tasks.batch_infer import BatchInferTask

    original = BatchInferTask.__call__

    @functools.wraps(original)
    def call(self: Any, request: dict[str, Any], datastore: Any, infer: Callable) -> dict[str, Any]:
        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False}
        results = original(self, request, datastore, _tolerant(infer))
        failed = [image for image, result in results.items() if result and "error" in result]
        if failed:
            named = "; ".join(f"{image}: {results[image]['error']}" for image in failed)
            logger.warning("%d of %d images have no answer: %s", len(failed), len(results), named)
        if failed and len(failed) == len(results):
            raise SeriesError(f"every image failed, the first with: {results[failed[0]]['error']}")
        return results

    BatchInferTask.__call__ = call


def _tolerant(infer: Callable) -> Callable:
    """Turn an exception of one image into its result."""
    from monailabel.interfaces.exception import MONAILabelException

    def run(request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        try:
            return infer(request, datastore)
        except Exception as error:
            is_ours = isinstance(error, (IOPFLError, MONAILabelException))
            # Of others, the text may hold paths or patient data: it stays in the log.
            reason = getattr(error, "msg", None) or str(error) if is_ours else f"failed with {type(error).__name__}"
            logger.warning("no result for image %s: %s", request.get("image"), reason, exc_info=not is_ours)
            return {"error": reason}

    return run
