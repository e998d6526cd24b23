"""Search, retrieve and store over DICOMweb (PS3.18), with time limits, few retries, and plain words."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from pydicom import Dataset
from retrying import RetryError

from iopfl.base.errors import NotTakenError
from iopfl.base.uids import is_uid
from iopfl.dicomweb import storing
from iopfl.dicomweb.answers import Item, first_value
from iopfl.dicomweb.asking import Asking, Endpoint, RefusedError, UnansweredError
from iopfl.dicomweb.retrieving import (
    SERIES_INSTANCE,
    SOP_CLASS,
    SOP_INSTANCE,
    UnableError,
    iterate,
    list_instances,
    path_of,
)
from iopfl.dicomweb.searching import FoundSeries, SeriesSearch
from iopfl.dicomweb.session import CONNECT_SECONDS, DirectSession

__all__ = ["DICOMweb", "Endpoint", "FoundSeries", "UnansweredError"]

# They log each search, each failure with its stack, and what servers answer; what matters of that is said here.
for _name in ("dicomweb_client", "retrying"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_RETRIEVING = "a series"
_OF_WHOLE = ("00280010", "30060020", "0040A730")
"""Rows, Structure Set ROI Sequence, Content Sequence: what images and segmentations, contours or reports hold."""
_NEVER = (405, 406, 415, 501)
"""Statuses of what a server has not, whatever the series."""
_RETRY_MILLISECONDS = 200
_CHUNK = 10**6  # bytes of an answer that is read piece by piece


class DICOMweb:
    """A server's DICOMweb services. Any number of threads may ask."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._local = threading.local()
        self._search = SeriesSearch(endpoint.name)
        self._unable: dict[str, str] = {}

    @property
    def cannot(self) -> list[str]:
        """What the server was found not to do, as lines for its administrator."""
        return list(dict.fromkeys([*self._search.cannot.values(), *self._unable.values()]))

    def find_series(self, filters: Mapping[str, Any], *, limit: int) -> list[FoundSeries]:
        """Search for series, in whichever way the server has.

        Args:
            filters: DICOM keyword -> value.
            limit: how many at most; the rest is left out.

        Raises:
            PACSError: it does not answer, or something else than series.
        """
        with self._asking("a search for series"):
            return self._search.find(self._mine(), filters, limit=limit)

    def find_series_of(self, instances: Sequence[str], study: str, among: Iterable[FoundSeries]) -> str:
        """The series that holds instances, which are of one.

        Args:
            instances: SOP Instance UIDs, at least one.
            study: where they are looked for first.
            among: series that are looked through where instances cannot be searched for.

        Returns:
            Its Series Instance UID; "" where none has them.
        """
        what = "a search for instances"
        with self._asking(what):
            for path in (f"/studies/{study}/instances", "/instances"):
                query = {"SOPInstanceUID": instances[0], "includefield": "SeriesInstanceUID"}
                with contextlib.suppress(RefusedError):
                    for item in self._mine().search(what, path, query):
                        uid = str(first_value(item, SERIES_INSTANCE))
                        if first_value(item, SOP_INSTANCE) == instances[0] and is_uid(uid):
                            return uid
            for series in among:
                found = {str(first_value(item, SOP_INSTANCE)) for item in list_instances(self._mine(), series)}
                if not found.isdisjoint(instances):
                    return series.uid
        return ""

    def read_headers(self, series: FoundSeries) -> list[Dataset]:
        """The instances of a series, without pixel data."""
        what = "the headers of a series"
        with self._asking(what):
            items: list[Item] = []
            with contextlib.suppress(RefusedError):
                items = self._read_metadata(what, path_of(series))
            if items and all(map(_is_whole, items)):
                return [_to_dataset(item) for item in items]
            return self._read_one_by_one(what, series)  # some have none of a series, or a few elements of each

    def read_first_headers(self, series: FoundSeries, *, count: int = 2) -> list[Dataset]:
        """So many instances of a series, without pixel data; none of a series that is empty by now."""
        what = "an instance of a series"
        with self._asking(what):
            return self._read_one_by_one(what, series, limit=count)

    def _read_one_by_one(self, what: str, series: FoundSeries, *, limit: int = 0) -> list[Dataset]:
        """Headers of so many instances, asked for each for itself; 0 = of all."""
        items: list[Item] = []
        with contextlib.suppress(RefusedError):
            for found in list_instances(self._mine(), series, limit=limit)[: limit or None]:
                uid = str(first_value(found, SOP_INSTANCE))
                items += self._read_metadata(what, f"{path_of(series)}/instances/{uid}")[:1] or [{}]
            if all(first_value(item, SOP_CLASS) for item in items):
                return [_to_dataset(item) for item in items]
        return [_without_pixels(ds) for ds in islice(self.retrieve(series), limit or None)]

    def retrieve(self, series: FoundSeries) -> Iterator[Dataset]:
        """A series' instances as they are stored, one at a time in memory."""
        with self._asking(_RETRIEVING) as client:
            try:
                yield from iterate(self._mine(), client, series)
            except UnableError as error:
                self._unable[_RETRIEVING] = error.line
                raise
            except (RefusedError, requests.HTTPError) as error:
                status = error.status if isinstance(error, RefusedError) else getattr(error.response, "status_code", 0)
                if status in _NEVER:
                    self._unable[_RETRIEVING] = f"refuses to give images as DICOM (WADO-RS), with status {status}"
                raise
            self._unable.pop(_RETRIEVING, None)

    def store(self, ds: Dataset, *, again: bool = False) -> str:
        """Store an instance (STOW-RS, PS3.18, 10.5); the same one again is no fault.

        Args:
            ds: the instance, with its file meta information.
            again: whether it was sent before: then it is searched for, and sent only if it is not there.

        Returns:
            The SOP Instance UID that it is stored under, which some servers change.

        Raises:
            PACSError: it is not stored (`NotTakenError`: nor would it be later; `UnansweredError`: as far as is known;
                `PACSAwayError`: nor was it sent).
        """
        kind = str(ds.SOPClassUID)
        with self._asking("storing"):
            try:
                uid = storing.store(self._mine(), ds, again=again)
            except NotTakenError as error:
                if error.line:
                    self._unable[kind] = error.line
                raise
            self._unable.pop(kind, None)
            return uid

    def _read_metadata(self, what: str, path: str) -> list[Item]:
        return self._mine().read_metadata(what, f"{path}/metadata")

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[DICOMwebClient]:
        """This thread's client; what goes wrong with it becomes a `PACSError`."""
        mine = self._mine()
        with mine.translating(what):
            try:
                yield self._local.client
            except RetryError as error:
                raise mine.busy(what, getattr(error.last_attempt.value, "status_code", 0)) from error

    def close(self) -> None:
        """Close this thread's connections."""
        mine = self._local.__dict__.pop("asking", None)
        if mine is not None:
            mine.session.close()
            del self._local.client

    def _mine(self) -> Asking:
        """This thread's connections."""
        if not hasattr(self._local, "asking"):
            self._local.asking = Asking(self.endpoint)
            self._local.client = self._connect(self._local.asking.session)
        return self._local.asking

    def _connect(self, session: DirectSession) -> DICOMwebClient:
        to = self.endpoint
        qido, wado, stow = to.prefixes
        client = DICOMwebClient(
            to.url.rstrip("/"),
            session=session,
            qido_url_prefix=qido,
            wado_url_prefix=wado,
            stow_url_prefix=stow,
            permissive_uid=True,
            timeout=(CONNECT_SECONDS, to.wait_seconds),
            chunk_size=_CHUNK,
        )
        client.set_http_retry_params(max_attempts=to.attempts, wait_exponential_multiplier=_RETRY_MILLISECONDS)
        return client


def _is_whole(item: Item) -> bool:
    """Whether a header holds more than the elements that a server has in its database, as far as can be told."""
    return bool(first_value(item, SOP_CLASS)) and any(tag in item for tag in _OF_WHOLE)


def _without_pixels(ds: Dataset) -> Dataset:
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        ds.pop(keyword, None)
    return ds


def _to_dataset(item: Mapping[str, Any]) -> Dataset:
    """A data set out of DICOM JSON; what is elsewhere (pixels, large tables) is left empty."""
    return Dataset.from_json(dict(item), bulk_data_uri_handler=lambda *_: None)
