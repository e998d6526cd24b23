"""Files in subfolders of OHIF come back as its start page, which asks Google for fonts.

Defect: `endpoints/ohif.py:35` puts `os.pathsep` (a colon) where `os.sep` was meant, and answers
every path it does not find with `index.html`, scripts and images too. `static/ohif/index.html` and
`app.bundle.css` name fonts.googleapis.com, and `app-config.js` has no address to store to.
Upstream: issues 1513 (scripts answered as HTML) and 1805 (labels cannot be saved from OHIF), both open.
"""

from __future__ import annotations

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Leave `/ohif` to `web.ohif`."""
    from monailabel.endpoints import ohif

    ohif.router.routes.clear()
