"""The server fetches a program from GitHub when it starts against a PACS.

Defect: `interfaces/app.py:176` (the download is at `:570`) gets dcmqi over the network,
so a server without internet access does not start. SEG objects are written with
highdicom here, and dcmqi is not needed.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5, which uses highdicom too.
"""

from __future__ import annotations

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Leave dcmqi alone."""
    from monailabel.interfaces.app import MONAILabelApp

    MONAILabelApp._download_dcmqi_tools = lambda self: None
