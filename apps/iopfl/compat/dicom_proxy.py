"""The proxy to the PACS, through which OHIF works, loses every query, waits for ever and passes anything on.

Defect: `endpoints/proxy.py:82` leaves out the query string, so each search of OHIF lists the whole
archive; it sets no timeout, holds whole answers in memory, passes all of the client's headers on with a POST,
lets `..` climb above the DICOMweb root, reaches whatever else the PACS has below it, and without a PACS
asks for the local folder as if it were a URL.
Upstream: issue 1239 (a folder asked for as if it were a URL), closed without a change; the rest is not reported.
"""

from __future__ import annotations

from iopfl.compat._patching import once


@once
def apply() -> None:
    """Leave `/proxy` to `web.dicom_proxy`."""
    from monailabel.endpoints import proxy

    proxy.router.routes.clear()
