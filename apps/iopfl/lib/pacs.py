"""The PACS over DICOMweb (PS3.18): search, retrieve, store; with time limits, few retries, and plain words.

User and password, or a bearer token, come from a file or from the environment, never from the command line, which
everybody on the machine can read. They are read anew for each request: tokens expire.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import requests
import yaml
from dicomweb_client import DICOMwebClient
from pydicom import Dataset
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from retrying import RetryError
from urllib3.util import Retry

from iopfl.base.errors import ConfigError, IOPFLError, PACSAwayError, PACSError
from iopfl.base.private_files import read_secret

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "IOPFL_PACS_TOKEN"
"""Environment variable of a bearer token; user and password are in MONAI Label's `MONAI_LABEL_DICOMWEB_USERNAME` and
`_PASSWORD`."""

TIMEOUT_SECONDS = (5.0, 30.0)
"""To connect, and between two pieces of an answer."""

UID = re.compile(r"[0-9][0-9.]{0,63}")
"""What may become a file's name."""

OF_STUDY = (
    "AccessionNumber",
    "ModalitiesInStudy",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientSex",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyDescription",
    "StudyID",
    "StudyInstanceUID",
    "StudyTime",
)
"""Keywords that say the same of an image and of its segmentations (PS3.18, 10.6.1); others are of one series."""

# They log each search, each failure with its stack, and what servers answer; what matters of that is said here.
for _name in ("dicomweb_client", "retrying"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_PAGE = 500
_SERIES_TAGS = ("0020000E", "0020000D", "00080060", "00201209")
"""Series and Study Instance UID, Modality, Number of Series Related Instances."""
_ATTEMPTS = 2
_RETRY_MILLISECONDS = 200
_ANY_TRANSFER_SYNTAX = (("application/dicom", "*"),)
"""As stored: decoding is ours to do, and not twice."""


@dataclass(frozen=True)
class PACSAccess:
    """Where a PACS is and how it is asked.

    Attributes:
        url: root of its DICOMweb services.
        credentials: YAML file with `token`, or `username` and `password`; None = from the environment, or none.
        ca: PEM file of the authority that signed its certificate; None = the public ones count.
    """

    url: str
    credentials: Path | None = None
    ca: Path | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"expected the DICOMweb address of a PACS, http(s)://..., given {self.shown_url!r}")
        if parts.username or parts.password:
            raise ConfigError(
                f"the address of the PACS must not hold a password, which logs and process lists would show: "
                f"give {self.shown_url} and --conf pacs_credentials FILE"
            )

    @property
    def shown_url(self) -> str:
        """The address, without what must not be shown."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))

    @property
    def verify(self) -> str | bool:
        """What `requests` and `httpx` take: the authority's file, or True for the public ones."""
        return str(self.ca) if self.ca else True

    def headers(self) -> dict[str, str]:
        """The header that signs in, as the credentials are now; empty without any.

        Raises:
            ConfigError: the file of credentials is not as it should be.
        """
        known = self._read_file() if self.credentials else _read_environment()
        if known.get("token"):
            return {"Authorization": f"Bearer {known['token']}"}
        if known.get("username"):
            pair = f"{known['username']}:{known.get('password', '')}".encode()
            return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        return {}

    def _read_file(self) -> Mapping[str, Any]:
        expected = f"{self.credentials}: expected YAML with token, or username and password"
        try:
            values = yaml.safe_load(read_secret(self.credentials))  # type: ignore[arg-type]
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{expected}, but it cannot be read ({type(error).__name__})") from error
        if not isinstance(values, dict) or not (values.get("token") or values.get("username")):
            raise ConfigError(f"{expected}, found neither")
        return values


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


class PACS:
    """A PACS's DICOMweb services. Any number of threads may ask."""

    def __init__(self, access: PACSAccess) -> None:
        self.access = access
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
        """Store an instance; the same one again is no fault.

        Raises:
            PACSError: it is not stored.
        """
        with self._asking("storing") as client:
            answer = client.store_instances([ds])
        stored = {str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or []}
        failed = {str(item.get("FailureReason")) for item in answer.get("FailedSOPSequence") or []}
        if str(ds.SOPInstanceUID) not in stored and (failed or stored):
            reasons = ", ".join(sorted(failed)) or "no reason"
            raise PACSError(f"the PACS did not store {ds.SOPInstanceUID} (failure reason {reasons}): see its log")

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[DICOMwebClient]:
        """This thread's client; what goes wrong with it becomes a `PACSError`."""
        where = self.access.shown_url
        try:
            yield self._client()
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            hint = "check the user, password or token" if status in (401, 403) else "see its log"
            raise PACSError(f"the PACS at {where} refused {what} with status {status}: {hint}") from error
        except requests.exceptions.SSLError as error:
            raise PACSError(
                f"the certificate of the PACS at {where} is not trusted: give its authority with --conf pacs_ca FILE"
            ) from error
        except RetryError as error:
            status = getattr(error.last_attempt.value, "status_code", 0)
            raise PACSAwayError(f"the PACS at {where} answers {what} with status {status}: try again later") from error
        except OSError as error:  # all of `requests`' errors are
            reason = type(error).__name__
            if isinstance(error, ValueError):  # no JSON
                raise PACSError(self._no_dicom(what, error)) from error
            raise PACSAwayError(f"the PACS at {where} does not answer {what} ({reason}): is it running?") from error
        except IOPFLError:
            raise
        except Exception as error:  # of parsing, which has no common base; its message may quote what a data set holds
            raise PACSError(self._no_dicom(what, error)) from error

    def _no_dicom(self, what: str, error: Exception) -> str:
        where, reason = self.access.shown_url, type(error).__name__
        return f"the PACS at {where} answered {what} with something else than DICOM ({reason}): is that DICOMweb?"

    def _client(self) -> DICOMwebClient:
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._connect()
        return client

    def _connect(self) -> DICOMwebClient:
        from monailabel.config import settings

        session = requests.Session()
        session.trust_env = False  # neither a web proxy nor a .netrc: the PACS is in the house
        session.verify = self.access.verify
        session.auth = _SignIn(self.access)
        # A connection that was refused is tried once more; what was sent is not sent twice.
        retry = Retry(total=1, connect=1, read=0, redirect=0, status=0, backoff_factor=0.2)
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        client = DICOMwebClient(
            self.access.url.rstrip("/"),
            session=session,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
            permissive_uid=True,
            timeout=TIMEOUT_SECONDS,
        )
        client.set_http_retry_params(max_attempts=_ATTEMPTS, wait_exponential_multiplier=_RETRY_MILLISECONDS)
        return client


class _SignIn(AuthBase):
    """Adds the header, as the credentials are at each request."""

    def __init__(self, access: PACSAccess) -> None:
        self._access = access

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._access.headers())
        return request


def _read_environment() -> Mapping[str, Any]:
    from monailabel.config import settings

    token = os.environ.get(TOKEN_VARIABLE)
    if token:
        return {"token": token}
    return {"username": settings.MONAI_LABEL_DICOMWEB_USERNAME, "password": settings.MONAI_LABEL_DICOMWEB_PASSWORD}


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
