"""A check sum is compared with that of another text, and of another file than the one that is sent.

Defect: `endpoints/datastore.py:140` (`download_image`) strips characters, not a prefix (`SHA256:25..` loses its 25),
and compares what is left with a sum that has the prefix still, so no sum is ever right. It sums the file as it is
kept, where `handing_out` may send another.
Upstream: pull request 1189 stopped computing sums, for their cost (1307); the wrong comparison is not reported.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from fastapi import HTTPException

from iopfl.compat._patching import once

ALGORITHMS = ("SHA256", "SHA512", "MD5")


@once
def apply() -> None:
    """Compare with the sum of what a download sends."""
    from monailabel.endpoints import datastore

    download = datastore.download_image

    @functools.wraps(download)
    def download_image(image: str, check_only: bool = False, check_sum: str | None = None) -> Any:
        if not check_only or not check_sum:
            return download(image, check_only)
        algorithm, digest = _read(check_sum)
        sent = download(image)
        try:
            with Path(sent.path).open("rb") as file:
                is_same = hashlib.file_digest(file, algorithm.lower()).hexdigest() == digest
        finally:
            if sent.background:  # what removes a copy that was made to be sent
                sent.background.func(*sent.background.args, **sent.background.kwargs)
        if not is_same:
            raise HTTPException(404, "the image has another check sum")
        return {}

    datastore.download_image = download_image


def _read(check_sum: str) -> tuple[str, str]:
    """Name of an algorithm, SHA-256 unless there is one, and the hexadecimal digits."""
    algorithm, colon, digest = check_sum.partition(":")
    if not colon:
        return ALGORITHMS[0], check_sum.lower()
    if algorithm not in ALGORITHMS:
        raise HTTPException(400, f"a check_sum begins with one of {', '.join(ALGORITHMS)}, not {algorithm[:20]!r}")
    return algorithm, digest.lower()
