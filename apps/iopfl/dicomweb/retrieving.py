"""Retrieving a series (WADO-RS, PS3.18 10.4): at once where a server can, else instance by instance."""

from __future__ import annotations

import contextlib
import logging
import mmap
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from typing import IO

import requests
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread
from retrying import RetryError

from iopfl.base.archives import read_entry
from iopfl.base.errors import PACSAwayError, PACSError
from iopfl.dicomweb.answers import Item, first_value
from iopfl.dicomweb.asking import SIGN_IN, Asking, RefusedError
from iopfl.dicomweb.searching import FoundSeries
from iopfl.dicomweb.session import MAX_ANSWER

logger = logging.getLogger(__name__)

SOP_INSTANCE, SOP_CLASS, SERIES_INSTANCE = "00080018", "00080016", "0020000E"
_WHAT = "a series"
_ANY_TRANSFER_SYNTAX = (("application/dicom", "*"),)
"""As stored: decoding is ours to do, and not twice."""
_ANY_FORM = (
    'multipart/related; type="application/dicom"; transfer-syntax=*, application/dicom; transfer-syntax=*, '
    'multipart/related; type="application/dicom", application/dicom, application/zip;q=0.5, '
    "application/json;q=0.1, */*;q=0.1"
)
"""Some refuse what they do not know by name, and give DICOM all the same."""
_SIGNATURE, _ZIP = 132, b"PK\3\4"
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,40}")
_MOST_PAGES = 1000


def path_of(series: FoundSeries) -> str:
    """Its address below the root."""
    return f"/studies/{series.study}/series/{series.uid}"


class UnableError(PACSError):
    """The server does not give images in a form that is read.

    Attributes:
        line: for its administrator.
    """

    def __init__(self, name: str, line: str) -> None:
        super().__init__(f"{name} {line}")
        self.line = line


def iterate(asking: Asking, client: DICOMwebClient, series: FoundSeries) -> Iterator[Dataset]:
    """A series' instances as they are stored, one at a time in memory.

    What the server does not give as multipart is asked for in any form, what it did not give with the series one by
    one, and what it does not give so with the study.

    Raises:
        UnableError: it gives them in no way.
    """
    came: set[str] = set()
    problem: Exception | None = None
    for give in (_give_streamed, _give):
        try:
            for ds in give(asking, client, series):
                came.add(str(ds.SOPInstanceUID))
                yield ds
        except Exception as error:  # of parsing, which has no common base, of HTTP, and ours
            if came or not _may_be_form(error):
                raise
            problem = error if problem is None or isinstance(error, UnableError) else problem
        else:
            problem = None
            break
    if problem is None and len(came) >= max(1, series.instances):
        return
    try:
        uids = [str(first_value(item, SOP_INSTANCE)) for item in list_instances(asking, series)]
    except PACSError as error:
        if problem is None:
            return
        raise problem from error
    listed = [uid for uid in dict.fromkeys(uids) if uid]
    left = [uid for uid in listed if uid not in came]
    if left:
        logger.info("series %s: %d instances are asked for one by one", series.uid, len(left))
    yield from _give_rest(asking, series, left, came)
    still_left = [uid for uid in left if uid not in came]
    if problem is not None and (still_left or not left):
        raise problem  # then what the series came to is all there is to say
    if still_left and len(still_left) >= len(listed) - 1:
        line = "gives one instance where all of a series are asked for, and refuses the others one by one"
        raise UnableError(asking.endpoint.name, line)


def _give_streamed(asking: Asking, client: DICOMwebClient, series: FoundSeries) -> Iterator[Dataset]:
    yield from client.iter_series(series.study, series.uid, media_types=_ANY_TRANSFER_SYNTAX)


def _give(asking: Asking, client: DICOMwebClient, series: FoundSeries) -> Iterator[Dataset]:
    yield from retrieve(asking, path_of(series), series)


def _give_rest(asking: Asking, series: FoundSeries, left: list[str], came: set[str]) -> Iterator[Dataset]:
    """Instances one by one, or, where these are refused, out of their study; `came` grows by them."""
    try:
        for uid in left:
            for ds in retrieve(asking, f"{path_of(series)}/instances/{uid}", series):
                came.add(uid)
                yield ds
        return
    except (RefusedError, UnableError) as error:
        if not _may_be_form(error):
            raise
        refusal = error
    with contextlib.suppress(RefusedError, UnableError):
        for ds in retrieve(asking, f"/studies/{series.study}", series):
            if (uid := str(ds.SOPInstanceUID)) not in came:
                came.add(uid)
                yield ds
    if isinstance(refusal, UnableError) and not came.issuperset(left):
        raise refusal


def retrieve(asking: Asking, path: str, series: FoundSeries) -> Iterator[Dataset]:
    """A series' instances at an address, in whichever form they come."""
    with asking.translating(_WHAT), asking.retrieve(_WHAT, path, _ANY_FORM) as (file, kind):
        for part in _read_parts(file, kind, asking.endpoint.name):
            ds = dcmread(BytesIO(part))
            if ds.get("SeriesInstanceUID") == series.uid:
                yield ds


def _read_parts(file: IO[bytes], kind: str, name: str) -> Iterator[bytes]:
    """Instances in an answer: multipart (PS3.18 8.6.1.2.1), a zip archive of files (PS3.18 8.7.3), or one alone."""
    start = file.read(_SIGNATURE)
    file.seek(0)
    if start.startswith(b"--") or kind.startswith("multipart/"):
        yield from _split(file, kind)
    elif start.startswith(_ZIP):
        yield from _unpack(file, name)
    elif start[128:] == b"DICM" or kind.startswith("application/dicom;") or kind.strip() == "application/dicom":
        yield file.read()
    else:
        said = kind.partition(";")[0].strip()
        shown = said if _MEDIA_TYPE.fullmatch(said) else "something without a media type"
        raise UnableError(
            name,
            f"gives the images of a series as {shown}; what is read is application/dicom, multipart or a zip of it",
        )


def _split(file: IO[bytes], kind: str) -> Iterator[bytes]:
    said = re.search(r'boundary="?([^";,\s]+)', kind)
    boundary = b"--" + said[1].encode() if said else file.readline().strip()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(boundary) + len(boundary)
        while (end := data.find(b"\n" + boundary, start)) >= 0:
            _, blank, body = data[start:end].removesuffix(b"\r").partition(b"\r\n\r\n")
            yield body if blank else data[start:end].partition(b"\n\n")[2]
            start = end + 1 + len(boundary)


def _unpack(file: IO[bytes], name: str) -> Iterator[bytes]:
    """The DICOM files of a zip archive, each within what an answer in memory may take."""
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                content = b"" if entry.is_dir() else read_entry(archive, entry.filename, limit=MAX_ANSWER)
                if content[128:132] == b"DICM":
                    yield content
    except zipfile.BadZipFile as error:
        raise UnableError(name, "gives the images of a series as a zip archive that is damaged") from error


def list_instances(asking: Asking, series: FoundSeries, *, limit: int = 0) -> list[Item]:
    """A series' instances as a search finds them, page after page."""
    found: dict[str, Item] = {}
    for _ in range(_MOST_PAGES):
        query = {key: number for key, number in (("limit", limit), ("offset", len(found))) if number}
        page = asking.search("an instance of a series", f"{path_of(series)}/instances", query)
        new = {uid: item for item in page if (uid := str(first_value(item, SOP_INSTANCE))) not in found}
        found |= new
        if not new or limit or len(found) >= series.instances > 0:
            break
    return list(found.values())


def _may_be_form(error: Exception) -> bool:
    """Whether the same may be had in another form: refused, or no multipart."""
    if isinstance(error, requests.HTTPError):
        return error.response is not None and error.response.status_code not in SIGN_IN
    if isinstance(error, RefusedError):
        return error.status not in SIGN_IN
    return isinstance(error, ValueError) or not isinstance(error, OSError | RetryError | PACSAwayError)
