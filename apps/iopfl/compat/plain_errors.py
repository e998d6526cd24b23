"""What goes wrong reaches the client as `Internal Server Error`, and nothing else; of a task, as a traceback.

Defect: `app.py` has no exception handlers, so `MONAILabelException` and every mistake
in a request that the code did not expect become a bare 500. A task's child process
(`interfaces/utils/app.py:98`) prints a traceback, in whose last line the message is lost.
Upstream: not reported.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import uuid
from types import TracebackType
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from iopfl.base import errors
from iopfl.base.names import name_route
from iopfl.compat._patching import once
from iopfl.compat.orphaned_child import CHILD_VARIABLE

logger = logging.getLogger(__name__)

RETRY_SECONDS = "10"
"""When to ask again, as a 503 says it: a routed answer takes about as long."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# The first that fits counts, hence subclasses first.
STATUS_OF_ERROR: tuple[tuple[type[errors.IOPFLError], int], ...] = (
    (errors.SeriesError, 422),
    (errors.DatasetError, 422),
    (errors.BankError, 409),
    (errors.TrainingError, 409),
    (errors.CancelledError, 409),
    (errors.LabelVersionError, 409),
    (errors.ImageExistsError, 409),
    (errors.LeaseError, 409),
    (errors.FederationsError, 409),
    (errors.SitsOutError, 409),
    (errors.PACSError, 502),
    (errors.BusyError, 503),
    (errors.StorageError, 507),
    (errors.IOPFLError, 400),
)


def status_of(error: Exception) -> int:
    """Choose the HTTP status for one of MONAI Label's exceptions or one of ours."""
    from monailabel.interfaces.exception import (
        ImageNotFoundException,
        LabelNotFoundException,
        MONAILabelError,
    )

    for kind, status in STATUS_OF_ERROR:
        if isinstance(error, kind):
            return status
    if isinstance(error, (ImageNotFoundException, LabelNotFoundException)):
        return 404
    return 400 if getattr(error, "error", "") == MONAILabelError.INVALID_INPUT else 500


@once
def apply() -> None:
    """Answer with the message where it was written for a reader, else with a number to look up."""
    from monailabel.app import app
    from monailabel.interfaces.exception import MONAILabelException

    # Logged is neither the address nor the message: both may hold an image's name, which may be a patient's.
    def explain(request: Request, error: Any) -> JSONResponse:
        message = getattr(error, "msg", None) or str(error)
        status = status_of(error)
        logger.info("%s %s: %d, %s", request.method, name_route(request.scope), status, type(error).__name__)
        headers = {"Retry-After": RETRY_SECONDS} if status == 503 else None
        return JSONResponse({"detail": message}, status, headers)

    def refer_to_log(request: Request, error: Exception) -> JSONResponse:
        # The text of an unforeseen exception may hold paths or patient data: it stays in the log.
        if isinstance(error, OSError) and error.errno in _FULL:  # before it came to a route
            return say_what_is_full(request, error)
        number = uuid.uuid4().hex[:8]
        logger.error("%s %s failed (%s)", request.method, name_route(request.scope), number, exc_info=error)
        detail = f"the server failed with {type(error).__name__}: look for {number} in its log"
        return JSONResponse({"detail": detail}, status_code=500)

    def say_what_is_full(request: Request, error: Any) -> JSONResponse:
        if error.errno not in _FULL:
            raise error
        logger.error("%s %s: %s", request.method, name_route(request.scope), error.strerror)
        return JSONResponse({"detail": f"{error.strerror}: nothing was kept; make room on the server's disk"}, 507)

    app.add_exception_handler(OSError, say_what_is_full)
    app.add_exception_handler(MONAILabelException, explain)
    app.add_exception_handler(errors.IOPFLError, explain)
    app.add_exception_handler(Exception, refer_to_log)


@once
def apply_to_child() -> None:
    """In a task's process, let an error that was written for a reader be the last line, without a traceback."""
    if CHILD_VARIABLE in os.environ:
        sys.excepthook = _explain_end


def _explain_end(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    from monailabel.interfaces.exception import MONAILabelException

    if isinstance(error, (MONAILabelException, errors.IOPFLError)):
        print(getattr(error, "msg", None) or error, file=sys.stderr, flush=True)  # noqa: T201  # GET /train/ shows it
    else:
        sys.__excepthook__(kind, error, traceback)
