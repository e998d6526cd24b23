"""`GET /datastore/dataset` answers 500 when nothing is labeled, and leaves its ZIP behind.

Defect: `datastore/local.py:386` asserts that there are labels; `endpoints/datastore.py:193`
never removes the archive, so each download stays in the temporary folder.
Upstream: not reported.
"""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from starlette.background import BackgroundTask

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Say that nothing is labeled; remove the archive once it is sent."""
    from monailabel.endpoints import datastore
    from monailabel.interfaces.utils.app import app_instance
    from monailabel.utils.others.generic import remove_file

    original = datastore.download_dataset

    def download_dataset(limit_cases: int | None = None) -> Any:
        if not app_instance().datastore().datalist():
            raise HTTPException(404, "no image has a label with tag 'final': label one first")
        response = original(limit_cases)
        response.background = BackgroundTask(remove_file, response.path)
        return response

    datastore.download_dataset = download_dataset
