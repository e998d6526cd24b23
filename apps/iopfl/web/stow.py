"""What is stored in the PACS through this server: segmentations alone, of a study that it has, under free names.

A body is kept on the disk, looked through part by part, and sent on in a form of our own, so that the PACS finds in
it what was found here (STOW-RS, PS3.18, 10.5). Nothing of a refused one reaches the PACS.
"""

from __future__ import annotations

import io
import mmap
import re
import secrets
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any

from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from pydicom import Dataset, dcmread, uid
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from iopfl.base.errors import SeriesError
from iopfl.base.uids import is_uid
from iopfl.dicomio.elements import check_order
from iopfl.dicomio.files import reading
from iopfl.dicomio.refusals import LABEL_MAP

STORED = (uid.SegmentationStorage, LABEL_MAP)
"""SOP classes that an annotator's viewer stores: OHIF exports no others from this server's mode."""

MAX_PARTS = 64

_CHUNK = 2**20
_MAX_HEADERS = 2**12
"""Bytes of a part's own headers."""
_MAX_META = 2**14
"""Bytes of a file's meta information."""
_MAX_HEAD = 2**24
"""Bytes of an instance before its Series Instance UID, the references to source images among them."""
_PREAMBLE = 132
"""Bytes before a file's meta information (PS3.10, 7.1)."""
_GROUP_LENGTH = struct.Struct("<128x4sHH2sHI")
_TAGS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID")
_LAST_TAG = 0x0020000E
_HIDDEN = (uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
"""Transfer syntaxes in which a small file may become a large one, or that nobody uses."""

Search = Callable[[str, dict[str, str]], Awaitable[list[dict[str, Any]]]]
"""Asks the PACS (QIDO-RS) for a path with a query; gives DICOM JSON objects."""


@dataclass(frozen=True)
class Part:
    """An instance in a body: where it lies, and what it says that it is."""

    start: int
    end: int
    sop_class: str
    instance: str
    study: str
    series: str
    patient: str


class Upload:
    """A body on the disk, gone when it is closed."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="iopfl-")  # noqa: SIM115  # closed by `close`
        self.parts: list[Part] = []
        self.boundary = f"iopfl-{secrets.token_hex(16)}"

    async def receive(self, request: Request) -> None:
        """Take in a request's body, and find its parts.

        Raises:
            HTTPException: 400, it is not as PS3.18 has it; 403, an instance of another kind; 415, no such body.
        """
        kind = Message()
        kind["content-type"] = request.headers.get("content-type", "")
        boundary = kind.get_boundary()
        if kind.get_content_type() != "multipart/related" or not boundary:
            raise HTTPException(415, "expected DICOM instances as multipart/related")
        async for piece in request.stream():
            await run_in_threadpool(self._file.write, piece)
        await run_in_threadpool(self._file.flush)
        self.parts = await run_in_threadpool(_find_parts, self._file, boundary.encode("latin-1", "replace"))

    def headers(self) -> dict[str, str]:
        """What the body that is sent on is said to be."""
        size = sum(len(self._head(part)) + part.end - part.start + 2 for part in self.parts) + len(self._tail())
        kind = f'multipart/related; type="application/dicom"; boundary={self.boundary}'
        return {"content-type": kind, "content-length": str(size)}

    async def stream(self) -> AsyncIterator[bytes]:
        """The same instances, as a body of ours."""
        for part in self.parts:
            yield self._head(part)
            for start in range(part.start, part.end, _CHUNK):
                yield await run_in_threadpool(self._read, start, min(_CHUNK, part.end - start))
            yield b"\r\n"
        yield self._tail()

    def close(self) -> None:
        """Remove it."""
        self._file.close()

    def _head(self, part: Part) -> bytes:
        length = part.end - part.start
        return f"--{self.boundary}\r\nContent-Type: application/dicom\r\nContent-Length: {length}\r\n\r\n".encode()

    def _tail(self) -> bytes:
        return f"--{self.boundary}--\r\n".encode()

    def _read(self, start: int, count: int) -> bytes:
        self._file.seek(start)
        return self._file.read(count)


async def check_places(parts: Sequence[Part], study: str, search: Search) -> None:
    """Check that instances come to a study that the PACS has, and replace nothing there, whosever it is.

    Args:
        parts: what is to be stored.
        study: Study Instance UID of the address; "" = it names none.
        search: asks the PACS.

    Raises:
        HTTPException: 403 or 409, in plain words.
    """
    if len({part.instance for part in parts}) < len(parts):
        raise HTTPException(409, "expected instances of different SOP Instance UIDs: export them anew")
    for part in parts:
        studies = await search("studies", {"StudyInstanceUID": part.study, "includefield": "00100020"})
        known = [found for found in studies if _value(found, "0020000D") == part.study]
        if not known or (study and part.study != study):
            raise HTTPException(403, "expected a segmentation of a study that the PACS has, this is of another one")
        if any(_value(found, "00100020") not in ("", part.patient) for found in known):
            raise HTTPException(403, "expected the Patient ID that the PACS has for this study, this has another one")
        for found in await search(f"studies/{part.study}/series", {"SeriesInstanceUID": part.series}):
            if _value(found, "0020000E") == part.series and _value(found, "00080060") != "SEG":
                raise HTTPException(403, "expected a series of its own for a segmentation, this has an image's")
        asked = {"SOPInstanceUID": part.instance}
        for found in await search(f"studies/{part.study}/instances", asked) + await search("instances", asked):
            if _value(found, "00080018") == part.instance:
                raise HTTPException(409, "the PACS has this instance already, and it stays as it is: export it anew")


def _value(found: dict[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON (PS3.18, F.2), as text; "" for none."""
    values = found.get(tag) if isinstance(found, dict) else None
    value = values.get("Value") if isinstance(values, dict) else None
    return str(value[0]).strip() if isinstance(value, list) and value else ""


def _find_parts(file: IO[bytes], boundary: bytes) -> list[Part]:
    """The instances of a body (RFC 2046, 5.1.1)."""
    if not file.tell():
        raise HTTPException(400, "expected DICOM instances, given nothing")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
        mark = b"--" + boundary
        at = 0 if body[: len(mark)] == mark else body.find(b"\r\n" + mark) + 2
        if at < 2 and body[: len(mark)] != mark:
            raise HTTPException(400, "expected the boundary that Content-Type names, found none")
        parts: list[Part] = []
        while True:
            at += len(mark)
            if body[at : at + 2] == b"--":
                break
            if len(parts) == MAX_PARTS:
                raise HTTPException(413, f"expected at most {MAX_PARTS} instances at once: store them by turns")
            lines = re.compile(rb"[ \t]*\r\n").match(body, at)
            start = body.find(b"\r\n\r\n", at, at + _MAX_HEADERS) + 4
            end = body.find(b"\r\n" + mark, max(at, start - 4))
            if lines is None or start < 4 or end < start:
                raise HTTPException(400, "expected each instance between boundaries, after headers of its own")
            _check_kind(body[lines.end() : start])
            parts.append(_describe(file, body, start, end))
            at = end + 2
    if not parts:
        raise HTTPException(400, "expected DICOM instances, given none")
    return parts


def _check_kind(headers: bytes) -> None:
    kinds = re.findall(rb"(?im)^content-type:[ \t]*([^;\r\n]*)", headers)
    if [kind.strip().lower() for kind in kinds] != [b"application/dicom"]:
        raise HTTPException(415, "expected each part as application/dicom")


def _describe(file: IO[bytes], body: mmap.mmap, start: int, end: int) -> Part:
    """What an instance says that it is, once and for all who read it; unpacks nothing."""
    try:
        with reading("an instance"):
            ds, meta = _read_head(file, start, end)
            found = {keyword: str(ds.get(keyword) or "").strip() for keyword in _TAGS}
            told = str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID)
    except SeriesError as error:
        raise HTTPException(400, str(error)) from error
    sop_class, instance = found["SOPClassUID"], found["SOPInstanceUID"]
    if sop_class not in STORED:
        name = uid.UID(sop_class).name if uid.UID(sop_class).is_valid else "something else"
        raise HTTPException(
            403,
            f"expected a segmentation, given {name}: only these are stored from here, send others to the PACS itself",
        )
    if told != (sop_class, instance) or not all(found[keyword] for keyword in _TAGS[1:4]):
        raise HTTPException(
            400, "expected one SOP class, instance, series and study, the instance names several or none"
        )
    if not all(is_uid(found[keyword]) for keyword in _TAGS[:4]):
        raise HTTPException(400, "expected UIDs of digits and dots")
    try:
        check_order(body, start + _PREAMBLE, end, is_implicit=meta.TransferSyntaxUID == uid.ImplicitVRLittleEndian)
    except SeriesError as error:
        raise HTTPException(400, str(error)) from error
    return Part(
        start, end, sop_class, instance, found["StudyInstanceUID"], found["SeriesInstanceUID"], found["PatientID"]
    )


def _read_head(file: IO[bytes], start: int, end: int) -> tuple[Dataset, Dataset]:
    """An instance up to its Series Instance UID, and its file meta information (PS3.10, 7.1)."""
    file.seek(start)
    head = file.read(min(end - start, _GROUP_LENGTH.size + _MAX_META))
    mark, group, element, kind, _, length = _GROUP_LENGTH.unpack_from(head.ljust(_GROUP_LENGTH.size, b"\0"))
    if (mark, group, element, kind) != (b"DICM", 2, 0, b"UL") or length > _MAX_META:
        raise SeriesError("expected an instance with file meta information, given something else: send it again")
    meta = dcmread(io.BytesIO(head[: _GROUP_LENGTH.size + length])).file_meta
    syntax = uid.UID(meta.TransferSyntaxUID)
    if syntax not in uid.AllTransferSyntaxes or syntax in _HIDDEN:
        raise SeriesError("expected an instance in little endian and not deflated: send it in another transfer syntax")
    window = _Window(file, start, min(end, start + _MAX_HEAD))
    tags: list[BaseTag | int] = [Tag(keyword) for keyword in _TAGS]
    ds = read_partial(window, lambda tag, *_: tag > _LAST_TAG, specific_tags=tags)  # type: ignore[arg-type]
    return ds, meta


class _Window:
    """A part of a file, of which no more is read than there is, whatever a length in it claims."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file, self._start, self._end = file, start, end
        file.seek(start)

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._end - self._file.tell())
        return self._file.read(left if count is None or count < 0 else min(count, left))

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = 0) -> int:
        origin = {0: self._start, 1: self._file.tell(), 2: self._end}[whence]
        self._file.seek(max(self._start, origin + offset))
        return self.tell()
