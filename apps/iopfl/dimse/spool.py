"""A data set on its way in: in memory while it is small, then in a file, and nowhere once there is no room for it.

pynetdicom gathers a message in a `BytesIO`. This one is written to the disk as it grows, behind the
head that makes it a DICOM file, so that an instance of gigabytes costs no more memory than one of
two megabytes, and is a rename away from its place.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from iopfl.base.errors import SeriesError

MEMORY = 2 * 2**20
"""Bytes of a data set that are held in memory, and in which all that identifies an instance has to lie."""


def _nothing(count: int) -> None:
    """What is reserved where nobody counts."""


class Incoming:
    """A file that is being received; it is gone with this object unless somebody gave it another name.

    Args:
        folder: where it lies meanwhile.
        reserve: asked for room before bytes are written; raises where there is none.
        release: told how many bytes are given back.

    Raises:
        OSError: there can be no file.
    """

    def __init__(
        self, folder: Path, reserve: Callable[[int], None] = _nothing, release: Callable[[int], None] = _nothing
    ) -> None:
        descriptor, name = tempfile.mkstemp(dir=folder)
        self._reserve, self._held = reserve, [0]
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self.path, self.size = Path(name), 0
        self._finalizer = weakref.finalize(self, _discard, self._file, self.path, self._held, release)

    def write(self, data: Any) -> None:
        """Append bytes.

        Raises:
            SeriesError: there shall be no more.
            OSError: the disk does not take them.
        """
        view = memoryview(data)
        self._reserve(len(view))
        self._held[0] += len(view)
        while view:
            count = self._file.write(view)
            self.size += count
            view = view[count:]

    def flush_to_disk(self) -> None:
        """Have what was written outlive the loss of power."""
        os.fsync(self._file.fileno())

    def discard(self) -> None:
        """Delete the file, if it is there still, and give its room back."""
        self._finalizer()


def _discard(file: Any, path: Path, held: list[int], release: Callable[[int], None]) -> None:
    file.close()
    path.unlink(missing_ok=True)
    release(held[0])


class Spool(BytesIO):
    """A data set as it comes, which pynetdicom takes for one in memory.

    What can be written nowhere is passed over to its end: its request shall get an answer.

    Attributes:
        size: bytes that came.
        begin: makes the file that a large data set goes into; None = it is no instance, or not known to be one.
        file: with all that came behind the head, once that is more than `MEMORY`; its first part is in memory too.
        failure: why it is not kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self.begin: Callable[[], Incoming] | None = None
        self.file: Incoming | None = None
        self.failure: Exception | None = None

    def write(self, data: Any) -> int:
        """Take the next part."""
        self.size += len(data)
        if self.begin is None:
            return super().write(data)
        if self.size > MEMORY and self.failure is None:
            self._write_to_file(data)
        room = MEMORY - self.tell()
        if room > 0:
            super().write(data[:room])
        return len(data)

    def _write_to_file(self, data: bytes) -> None:
        try:
            if self.file is None:
                assert self.begin is not None
                self.file = self.begin()
                self.file.write(self.getbuffer())
            self.file.write(data)
        except (OSError, SeriesError) as error:
            self.failure = error
            self.discard()

    def discard(self) -> None:
        """Delete the file, unless it has got its place."""
        if self.file is not None:
            self.file.discard()
