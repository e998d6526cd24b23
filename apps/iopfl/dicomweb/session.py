"""HTTP as patient data may travel: to the server that was named, by no proxy and to no host that others name.

`requests` obeys the environment (`http_proxy`, `.netrc`, `REQUESTS_CA_BUNDLE`), follows
redirects anywhere and reads answers of any size. This session does none of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util import Retry

CONNECT_SECONDS, WAIT_SECONDS = 5.0, 30.0
"""To connect, and between two pieces of an answer."""
ANSWER_SECONDS = 3600.0
"""For a whole answer."""
MAX_ANSWER = 512 * 2**20
"""Bytes of an answer that is held in memory: the headers of an enhanced series of thousands of frames have 100 MB."""
MAX_STREAM = 64 * 2**30
"""Bytes of one that is not: a whole series."""


class ElsewhereError(requests.RequestException):
    """The answer is a redirect that patient data and credentials must not follow."""


class TooMuchError(requests.RequestException):
    """The answer is larger, or takes longer, than any should."""


class DirectSession(requests.Session):
    """A session that speaks with one server.

    Args:
        verify: PEM file of the authority that signed the server's certificate; True = the public ones count.
        headers: what signs in, as it is at each request.
        proxy: URL of a proxy that was configured for this server; empty = none.
    """

    def __init__(self, *, verify: Path | bool, headers: Callable[[], Mapping[str, str]], proxy: str = "") -> None:
        super().__init__()
        self.trust_env = False
        self.verify = verify if isinstance(verify, bool) else str(verify)
        self.auth = _SignIn(headers)
        if proxy:
            self.proxies = {"http": proxy, "https": proxy}
        # A connection that was refused is tried once more; what was sent is not sent twice.
        retry = Retry(total=1, connect=1, read=0, redirect=0, status=0, backoff_factor=0.2)
        for scheme in ("http://", "https://"):
            self.mount(scheme, _BoundedAdapter(max_retries=retry))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Where an answer sends us on to, if that is the same server and nothing was sent along.

        Raises:
            ElsewhereError: it is not.
        """
        target = super().get_redirect_target(resp)
        if target is None:
            return None
        to, here = urlsplit(urljoin(resp.url, target)), urlsplit(resp.url)
        if resp.request.method != "GET" or (to.scheme, to.netloc) != (here.scheme, here.netloc):
            raise ElsewhereError("a redirect", response=resp)
        return target


class _SignIn(AuthBase):
    """Adds the header, as the credentials are at each request."""

    def __init__(self, headers: Callable[[], Mapping[str, str]]) -> None:
        self._headers = headers

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._headers())
        return request


class _BoundedAdapter(HTTPAdapter):
    def send(self, request: Any, stream: bool = False, timeout: Any = None, *more: Any, **ways: Any) -> Any:
        answer = super().send(request, stream, timeout or (CONNECT_SECONDS, WAIT_SECONDS), *more, **ways)
        answer.raw = _Bounded(answer.raw, MAX_STREAM if stream else MAX_ANSWER)
        return answer


class _Bounded:
    """A body that ends with an error when it is too long, as it is after decompression."""

    def __init__(self, body: Any, most: int) -> None:
        self._body, self._left, self._until = body, most, time.monotonic() + ANSWER_SECONDS

    def stream(self, *arguments: Any, **options: Any) -> Iterator[bytes]:
        """As urllib3's."""
        for part in self._body.stream(*arguments, **options):
            self._left -= len(part)
            if self._left < 0 or time.monotonic() > self._until:
                self._body.close()
                raise TooMuchError("an answer without end")
            yield part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)
