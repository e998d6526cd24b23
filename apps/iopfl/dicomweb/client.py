"""Search, retrieve and store over DICOMweb (PS3.18), with time limits, few retries, and plain words."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from pydicom import Dataset
from retrying import RetryError

from iopfl.base.errors import IOPFLError, PACSAwayError, PACSError
from iopfl.dicomweb.session import CONNECT_SECONDS, WAIT_SECONDS, DirectSession, ElsewhereError, TooMuchError

UID = re.compile(r"[0-9][0-9.]{0,63}")
"""What may become a file's name."""

# They log each search, each failure with its stack, and what servers answer; what matters of that is said here.
for _name in ("dicomweb_client", "retrying"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_PAGE = 500
_SERIES_TAGS = ("0020000E", "0020000D", "00080060", "00201209")
"""Series and Study Instance UID, Modality, Number of Series Related Instances."""
_RETRY_MILLISECONDS = 200
_CHUNK = 10**6  # bytes of an answer that is read piece by piece
_ONE_CHUNK = 2**31  # bytes: a request of known length, which every server understands
_ANY_TRANSFER_SYNTAX = (("application/dicom", "*"),)
"""As stored: decoding is ours to do, and not twice."""


@dataclass(frozen=True)
class FoundSeries:
    """A series as a search finds it.

    Attributes:
        uid: Series Instance UID.
        study: Study Instance UID.
        modality: e.g. MR.
        instances: how many there are; 0 = the PACS does not say.
    """

    uid: str
    study: str
    modality: str
    instances: int = 0


@dataclass(frozen=True)
class Endpoint:
    """A server's DICOMweb services, and how they are asked.

    Attributes:
        url: their root.
        name: of the server, in messages.
        headers: what signs in, as it is at each request.
        verify: PEM file of the authority that signed its certificate; True = the public ones count.
        ca_hint: how to give that file.
        proxy: URL of the proxy that leads there; empty = none.
        prefixes: of QIDO, WADO and STOW, below the root.
        attempts: of a request, where the server is busy.
        wait_seconds: between two pieces of an answer.
    """

    url: str
    name: str
    headers: Callable[[], Mapping[str, str]] = dict
    verify: Path | bool = True
    ca_hint: str = "ca: FILE"
    proxy: str = ""
    prefixes: tuple[str | None, str | None, str | None] = (None, None, None)
    attempts: int = 2
    wait_seconds: float = WAIT_SECONDS


class DICOMweb:
    """A server's DICOMweb services. Any number of threads may ask."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._local = threading.local()

    def find_series(self, filters: Mapping[str, Any], *, limit: int) -> list[FoundSeries]:
        """Search for series, page after page.

        Args:
            filters: DICOM keyword -> value.
            limit: how many at most; the rest is left out.

        Raises:
            PACSError: it does not answer, or something else than series.
        """
        found: dict[str, FoundSeries] = {}
        with self._asking("a search for series") as client:
            while len(found) < limit:
                page = client.search_for_series(
                    search_filters=dict(filters),
                    fields=["NumberOfSeriesRelatedInstances"],
                    limit=_PAGE,
                    offset=len(found),
                )
                series = [_to_series(item) for item in page]
                new = {entry.uid: entry for entry in series if entry and entry.uid not in found}
                if not new:  # the end, or a PACS that has no pages
                    break
                found.update(new)
        return list(found.values())[:limit]

    def read_headers(self, series: FoundSeries) -> list[Dataset]:
        """The instances of a series, without pixel data."""
        with self._asking("the headers of a series") as client:
            return [_to_dataset(item) for item in client.retrieve_series_metadata(series.study, series.uid)]

    def read_first_header(self, series: FoundSeries) -> Dataset | None:
        """One instance of a series, without pixel data; None of a series that is empty by now."""
        with self._asking("an instance of a series") as client:
            found = client.search_for_instances(series.study, series.uid, limit=1)
            if not found:
                return None
            uid = str(_to_dataset(found[0]).SOPInstanceUID)
            return _to_dataset(client.retrieve_instance_metadata(series.study, series.uid, uid))

    def retrieve(self, series: FoundSeries) -> Iterator[Dataset]:
        """A series' instances as they are stored, one at a time in memory."""
        with self._asking("a series") as client:
            yield from client.iter_series(series.study, series.uid, media_types=_ANY_TRANSFER_SYNTAX)

    def store(self, ds: Dataset) -> None:
        """Store an instance (STOW-RS, PS3.18, 10.5); the same one again is no fault.

        Raises:
            PACSError: it is not stored (`PACSAwayError`: since there is no answer).
        """
        with self._asking("storing") as client:
            client.set_chunk_size(_ONE_CHUNK)
            try:
                answer = client.store_instances([ds])
            finally:
                client.set_chunk_size(_CHUNK)
        stored = {str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or []}
        failed = {str(item.get("FailureReason")) for item in answer.get("FailedSOPSequence") or []}
        if str(ds.SOPInstanceUID) not in stored and (failed or stored):
            reasons = ", ".join(sorted(failed)) or "no reason"
            where = self.endpoint.name
            raise PACSError(f"{where} did not store {ds.SOPInstanceUID} (failure reason {reasons}): see its log")

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[DICOMwebClient]:
        """This thread's client; what goes wrong with it becomes a `PACSError`."""
        where = self.endpoint.name
        try:
            yield self._client()
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            hint = "check the user, password or token" if status in (401, 403) else "see its log"
            raise PACSError(f"{where} refused {what} with status {status}: {hint}") from error
        except requests.exceptions.SSLError as error:
            raise PACSError(
                f"the certificate of {where} is not trusted: give its authority with {self.endpoint.ca_hint}"
            ) from error
        except RetryError as error:
            status = getattr(error.last_attempt.value, "status_code", 0)
            raise PACSAwayError(f"{where} answers {what} with status {status}: try again later") from error
        except ElsewhereError as error:
            raise PACSError(
                f"{where} answers {what} with a redirect to elsewhere, which is not followed: correct its address"
            ) from error
        except TooMuchError as error:
            raise PACSError(f"{where} answers {what} without end: is that DICOMweb?") from error
        except OSError as error:  # all of `requests`' errors are
            reason = type(error).__name__
            if isinstance(error, ValueError):  # no JSON
                raise PACSError(self._no_dicom(what, error)) from error
            raise PACSAwayError(f"{where} does not answer {what} ({reason}): is it running?") from error
        except IOPFLError:
            raise
        except Exception as error:  # of parsing, which has no common base; its message may quote what a data set holds
            raise PACSError(self._no_dicom(what, error)) from error

    def _no_dicom(self, what: str, error: Exception) -> str:
        where, reason = self.endpoint.name, type(error).__name__
        return f"{where} answered {what} with something else than DICOM ({reason}): is that DICOMweb?"

    def close(self) -> None:
        """Close this thread's connections."""
        session = self._local.__dict__.pop("session", None)
        if session is not None:
            session.close()
            del self._local.client

    def _client(self) -> DICOMwebClient:
        if not hasattr(self._local, "client"):
            to = self.endpoint
            self._local.session = DirectSession(verify=to.verify, headers=to.headers, proxy=to.proxy)
            self._local.client = self._connect(self._local.session)
        return self._local.client

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


def _to_dataset(item: Mapping[str, Any]) -> Dataset:
    """A data set out of DICOM JSON; what is elsewhere (pixels, large tables) is left empty."""
    return Dataset.from_json(dict(item), bulk_data_uri_handler=lambda *_: None)


def _to_series(item: Mapping[str, Any]) -> FoundSeries | None:
    """A found series, of which only this is looked at: there may be thousands. None where its UIDs are none."""
    uid, study, modality, count = (_first_value(item, tag) for tag in _SERIES_TAGS)
    if not (UID.fullmatch(str(uid)) and UID.fullmatch(str(study))):
        return None
    return FoundSeries(str(uid), str(study), str(modality), int(count or 0))


def _first_value(item: Mapping[str, Any], tag: str) -> Any:
    """The first value of an element in DICOM JSON (PS3.18 F.2); "" without any."""
    return next(iter(item.get(tag, {}).get("Value") or []), "")
