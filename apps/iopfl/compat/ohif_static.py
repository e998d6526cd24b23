"""Files in subfolders of OHIF come back as its start page.

Defect: `endpoints/ohif.py:35` puts `os.pathsep` (a colon) where `os.sep` was meant, and answers
every path it does not find with `index.html`, scripts and images too.
Upstream: no issue known. Ends with: MONAI Label > 0.8.5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import HTTPException
from fastapi.responses import FileResponse

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Serve the folder: its files, the start page for OHIF's own routes, 404 for the rest."""
    from monailabel.endpoints import ohif
    from monailabel.utils.others.generic import get_mime_type

    folder = Path(ohif.__file__).resolve().parent / "static" / "ohif"

    def get_ohif(path: str) -> Any:
        file = (folder / path.lstrip("/")).resolve()
        if not file.is_relative_to(folder):
            raise HTTPException(404, "no such file")
        if not file.is_file():
            # A viewer's address such as /ohif/viewer has no suffix; what has one is a file.
            if file.suffix and not file.is_dir():
                raise HTTPException(404, f"no file {path!r} in OHIF")
            file = folder / "index.html"
        return FileResponse(file, media_type=get_mime_type(str(file)))

    ohif.get_ohif = get_ohif
