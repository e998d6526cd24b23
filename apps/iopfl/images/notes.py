"""What an image that was made of something else says of its making: a comment in its NIfTI header.

It travels with the file, from a PACS's cache to a viewer or to a training, and says which voxels are no image.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from nibabel.nifti1 import Nifti1Extension

_CODE = 6
"""Of a comment in plain text (NIfTI-1, nifti1.h)."""
_START = b'{"iopfl": '
_MOST, _LONGEST = 64, 400
"""Lines, and characters of one, that are taken from a file."""


@dataclass(frozen=True)
class FileNotes:
    """What a file says of itself.

    Attributes:
        padding: value of the voxels that are no image, which a scanner only filled up with; None = there are none.
        left_out: instances of the series that are not in the image, and why: a line each.
        shifts: whether its slices shifted sideways, and lie on a larger grid, which has voxels beside them.
    """

    padding: float | None = None
    left_out: tuple[str, ...] = ()
    shifts: bool = False

    def to_extensions(self) -> list[Nifti1Extension]:
        """As extensions of a NIfTI header: one, or none where there is nothing to say."""
        if self == FileNotes():
            return []
        return [Nifti1Extension(_CODE, json.dumps({"iopfl": asdict(self)}).encode())]

    @classmethod
    def of(cls, extensions: Iterable[Any]) -> FileNotes:
        """Those of a NIfTI header; what others wrote there says nothing."""
        for extension in extensions:
            content = extension.get_content() if extension.get_code() == _CODE else b""
            content = content.encode() if isinstance(content, str) else bytes(content)
            if content.startswith(_START):
                try:
                    return cls._read(json.loads(content.rstrip(b"\0 "))["iopfl"])
                except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                    continue
        return cls()

    @classmethod
    def _read(cls, values: dict[str, Any]) -> FileNotes:
        padding, lines = values.get("padding"), values.get("left_out") or []
        known = isinstance(padding, int | float) and math.isfinite(padding)
        said = [line[:_LONGEST] for line in lines if isinstance(line, str) and line.isprintable()]
        return cls(float(padding) if known else None, tuple(said[:_MOST]), values.get("shifts") is True)  # type: ignore[arg-type]
