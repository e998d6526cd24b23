"""Requests to one DICOMweb server, with time limits and few retries; what goes wrong is said in plain words."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode

import requests

from iopfl.base.errors import IOPFLError, PACSAwayError, PACSError, StorageError
from iopfl.dicomweb.answers import Item, read_items
from iopfl.dicomweb.session import CONNECT_SECONDS, WAIT_SECONDS, DirectSession, ElsewhereError, TooMuchError

_RETRY_SECONDS = 0.2
_BUSY = (408, 429, 503, 504)
"""Statuses after which the same request may be answered."""
_NOT_ACCEPTABLE = 406
SIGN_IN = (401, 403)
"""Statuses that another form of the same request does not mend."""
_PIECE = 10**6  # bytes
_AS_JSON = "application/dicom+json, application/json"
_AS_ANYTHING = 'application/json, multipart/related; type="application/dicom+xml", application/dicom+xml, */*;q=0.5'


class RefusedError(PACSError):
    """A request is refused.

    Attributes:
        status: the status of the answer.
        items: that came with it.
    """

    def __init__(self, message: str, *, status: int, items: list[Item]) -> None:
        super().__init__(message)
        self.status, self.items = status, items


class UnansweredError(PACSAwayError):
    """What was sent was not answered: it may have come."""


@dataclass(frozen=True)
class Endpoint:
    """A server's DICOMweb services, and how they are asked.

    Attributes:
        url: their root.
        name: the name of the server, in messages.
        headers: what signs in, as it is at each request.
        verify: PEM file of the authority that signed its certificate; True = the public ones count.
        ca_hint: how to give that file.
        proxy: URL of the proxy that leads there; empty = none.
        prefixes: the prefixes of QIDO, WADO and STOW, below the root.
        attempts: how often a request is tried where the server is busy.
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


@dataclass(frozen=True)
class Answer:
    """An answer with a status below 400, read.

    Attributes:
        status: the HTTP status.
        items: data sets in DICOM JSON.
        is_dicom: whether it is DICOM, or nothing.
    """

    status: int
    items: list[Item]
    is_dicom: bool = True


class Asking:
    """Requests of one thread."""

    def __init__(self, to: Endpoint) -> None:
        self.endpoint = to
        self.session = DirectSession(verify=to.verify, headers=to.headers, proxy=to.proxy)

    def search(self, what: str, path: str, query: Mapping[str, Any]) -> list[Item]:
        """Search (QIDO-RS, PS3.18 10.6).

        Args:
            what: is asked for, in messages.
            path: below the root, such as `/series`.
            query: parameter -> value.

        Raises:
            RefusedError: it is refused, or there is no such search.
            PACSError: the answer is no DICOM (`PACSAwayError`: there is none).
        """
        return self._get(what, self._url(0, path) + (f"?{urlencode(query, quote_via=quote)}" if query else ""))

    def read_metadata(self, what: str, path: str) -> list[Item]:
        """Headers of instances (WADO-RS, PS3.18 10.4.1.1.2); raises as `search`."""
        return self._get(what, self._url(1, path))

    @contextlib.contextmanager
    def retrieve(self, what: str, path: str, accept: str) -> Iterator[tuple[IO[bytes], str]]:
        """An answer of WADO-RS as it is, in a file for the while, and its media type; raises as `search`."""
        with self.translating(what), tempfile.TemporaryFile() as file:
            with self._request(what, "GET", self._url(1, path), headers={"Accept": accept}, stream=True) as found:
                for piece in found.iter_content(_PIECE):
                    with _writing():
                        file.write(piece)
            file.seek(0)
            yield file, found.headers.get("Content-Type", "")

    def post(self, what: str, path: str, body: bytes, kind: str) -> Answer:
        """Store (STOW-RS, PS3.18 10.5).

        Raises:
            RefusedError: it is refused.
            PACSError: it is led elsewhere (`UnansweredError`: or there is no answer).
        """
        headers = {"Content-Type": kind, "Accept": _AS_JSON}
        with self.translating(what):
            try:
                found = self._request(what, "POST", self._url(2, path), headers=headers, data=body)
            except requests.ConnectTimeout:  # so it did not come
                raise
            except requests.Timeout as error:
                raise UnansweredError(f"{self.endpoint.name} does not answer {what}: is it busy?") from error
            except PACSAwayError as error:
                raise UnansweredError(str(error)) from error
            try:
                return Answer(found.status_code, read_items(found.content))
            except Exception:  # parsers have no common base
                return Answer(found.status_code, [], is_dicom=False)

    def _url(self, service: int, path: str) -> str:
        prefix = self.endpoint.prefixes[service]
        return self.endpoint.url.rstrip("/") + (f"/{prefix}" if prefix is not None else "") + path

    def _get(self, what: str, url: str) -> list[Item]:
        with self.translating(what):
            try:
                found = self._request(what, "GET", url, headers={"Accept": _AS_JSON})
            except RefusedError as error:
                if error.status != _NOT_ACCEPTABLE:
                    raise
                found = self._request(what, "GET", url, headers={"Accept": _AS_ANYTHING})
            return read_items(found.content)

    def _request(self, what: str, method: str, url: str, **options: Any) -> requests.Response:
        to = self.endpoint
        for attempt in range(to.attempts):
            if attempt:
                time.sleep(_RETRY_SECONDS * 2**attempt)
            found = self.session.request(method, url, timeout=(CONNECT_SECONDS, to.wait_seconds), **options)
            if found.status_code not in _BUSY:
                break
        else:
            raise self.busy(what, found.status_code)
        if not found.ok:
            raise self.refused(what, found)
        return found

    def busy(self, what: str, status: int) -> PACSAwayError:
        """What to raise of a server that says that it cannot now."""
        return PACSAwayError(f"{self.endpoint.name} answers {what} with status {status}: try again later")

    def refused(self, what: str, answer: requests.Response | None) -> RefusedError:
        """What to raise of one that does not want."""
        status = answer.status_code if answer is not None else 0
        hint = "check the user, password or token" if status in SIGN_IN else "see its log"
        items: list[Item] = []
        with contextlib.suppress(Exception):  # parsers have no common base
            items = read_items(answer.content) if answer is not None else []
        return RefusedError(
            f"{self.endpoint.name} refused {what} with status {status}: {hint}", status=status, items=items
        )

    @contextlib.contextmanager
    def translating(self, what: str) -> Iterator[None]:
        """What goes wrong with a request becomes a `PACSError`."""
        where = self.endpoint.name
        try:
            yield
        except requests.HTTPError as error:
            raise self.refused(what, error.response) from error
        except requests.exceptions.SSLError as error:
            raise PACSError(
                f"the certificate of {where} is not trusted: give its authority with {self.endpoint.ca_hint}"
            ) from error
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


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """What goes wrong with our own disk is no fault of the server."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the temporary folder, {tempfile.gettempdir()}, has no room for an answer of the PACS: "
            f"{error.strerror or type(error).__name__}; make room"
        ) from error
