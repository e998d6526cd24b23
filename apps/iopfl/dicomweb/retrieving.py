"""Retrieving a series (WADO-RS, PS3.18 10.4): at once where a server can, else instance by instance."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from io import BytesIO

import requests
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread
from retrying import RetryError

from iopfl.base.errors import PACSError
from iopfl.dicomweb.answers import Item, first_value
from iopfl.dicomweb.asking import Asking, RefusedError
from iopfl.dicomweb.searching import FoundSeries

logger = logging.getLogger(__name__)

SOP_INSTANCE, SOP_CLASS, SERIES_INSTANCE = "00080018", "00080016", "0020000E"
_WHAT = "a series"
_ANY_TRANSFER_SYNTAX = (("application/dicom", "*"),)
"""As stored: decoding is ours to do, and not twice."""
_ANY_FORM = 'multipart/related; type="application/dicom", application/dicom, application/json;q=0.1, */*;q=0.1'
"""Some refuse what they do not know by name, and give DICOM all the same."""
_MOST_PAGES = 1000


def path_of(series: FoundSeries) -> str:
    """Its address below the root."""
    return f"/studies/{series.study}/series/{series.uid}"


def iterate(asking: Asking, client: DICOMwebClient, series: FoundSeries) -> Iterator[Dataset]:
    """A series' instances as they are stored, one at a time in memory.

    Those that the server did not give with the series, or not as multipart, are asked for one after the other.
    """
    came = set()
    try:
        for ds in client.iter_series(series.study, series.uid, media_types=_ANY_TRANSFER_SYNTAX):
            came.add(str(ds.SOPInstanceUID))
            yield ds
    except (OSError, RetryError) as error:
        if came or not _may_be_form(error):
            raise
        problem: Exception | None = error
    except Exception as error:  # of parsing, which has no common base
        if came:
            raise
        problem = error
    else:
        if len(came) >= max(1, series.instances):
            return
        problem = None
    try:
        uids = [str(first_value(item, SOP_INSTANCE)) for item in list_instances(asking, series)]
    except PACSError as error:
        if problem is None:
            return
        raise problem from error
    left = [uid for uid in dict.fromkeys(uids) if uid and uid not in came]
    if problem is not None and not left:
        raise problem
    if left:
        logger.info("series %s: %d instances are asked for one by one", series.uid, len(left))
    for uid in left:
        try:
            yield retrieve_instance(asking, series, uid)
        except RefusedError as error:  # then what the series came to is all there is to say
            if problem is None:
                return
            raise problem from error


def retrieve_instance(asking: Asking, series: FoundSeries, uid: str) -> Dataset:
    """One instance, in whichever form it comes."""
    with asking.translating(_WHAT):
        body, kind = asking.retrieve(_WHAT, f"{path_of(series)}/instances/{uid}", _ANY_FORM)
        if body.startswith(b"--") or kind.startswith("multipart/"):
            said = re.search(r'boundary="?([^";,\s]+)', kind)
            boundary = b"--" + said[1].encode() if said else body.split(b"\n", 1)[0].strip()
            part = body.split(boundary, 2)[1]
            body = re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]
        return dcmread(BytesIO(body))


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
        return error.response is not None and error.response.status_code not in (401, 403)
    return isinstance(error, ValueError) and not isinstance(error, RetryError)
