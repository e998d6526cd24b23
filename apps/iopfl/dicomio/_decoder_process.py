"""Decodes compressed frames in a process of its own, started by `decoding`, which says why; imports nothing of iopfl.

A request on stdin is a line of JSON (size, syntax, raw, and pydicom's decoding options) and `size` bytes of pixel
data; the answer on stdout is, for each frame, a line of JSON (dtype, shape) and its bytes, then a line with `error`:
the name of the exception, or empty.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any, BinaryIO

from pydicom.pixels import get_decoder

MEMORY = 8 << 30  # bytes of address space


def main() -> None:
    """Answer requests until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # codecs print what they think
    while header := sys.stdin.buffer.readline():
        request = json.loads(header)
        pixels = sys.stdin.buffer.read(request.pop("size"))
        try:
            _answer(answers, pixels, **request)
            error = ""
        except Exception as failure:  # of any codec
            error = type(failure).__name__
        answers.write(json.dumps({"error": error}).encode() + b"\n")
        answers.flush()


def _answer(answers: BinaryIO, pixels: bytes, syntax: str, raw: bool, **options: Any) -> None:
    for frame, _ in get_decoder(syntax).iter_array(pixels, raw=raw, **options):
        answers.write(json.dumps({"dtype": frame.dtype.str, "shape": frame.shape}).encode() + b"\n")
        answers.write(frame.tobytes())


if __name__ == "__main__":
    main()
