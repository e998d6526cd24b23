"""Where connections wait until they have asked for an association: one thread for all of them, and no place of a peer.

A connection that says nothing, or says it byte by byte, costs a descriptor and a few
bytes here, and when there are too many, the oldest of the address that has most goes.
Only a whole request for association that can be granted gets threads of its own.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from iopfl.dimse.asking import HEAD_BYTES, MAX_REQUEST, REQUEST_PDU, Refusal, Request, printable, read_request

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 2.0
"""For an association to become free, from a whole request on."""

_MOST = 256  # connections
_FAREWELL_SECONDS = 2.0  # for the peer to close after a refusal, which it could not read otherwise
_A_TURN = 64  # connections taken before others are looked at
_TURN_SECONDS = 0.1
_QUIET_SECONDS = 10.0  # between lines of the same kind
_ABORT = struct.pack(">BxL2xBx", 7, 4, 2)  # A-ABORT of the service provider (PS3.8, 9.3.8)
_HEAD = struct.Struct(">BxL")


@dataclass(eq=False)
class Guest:
    """A connection without an association.

    Attributes:
        connection: not blocking.
        address: the address of the peer.
        until: when it has to go, monotonic seconds.
        handshakes: whether TLS is being set up.
        data: that came.
        request: that it is, once it is whole.
        leaves: whether it was told to.
        is_watched: whether what it sends is waited for. Once it has an association, that may have closed it already.
    """

    connection: socket.socket
    address: Any
    until: float
    handshakes: bool
    data: bytearray = field(default_factory=bytearray)
    request: Request | None = None
    leaves: bool = False
    is_watched: bool = True

    def __str__(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"


class Lobby:
    """All connections to a listening socket that are no associations yet.

    Args:
        listening: the socket.
        seconds: for a connection to ask for an association, TLS included.
        tls: None = plain.
        judge: why a request is refused whatever there is room for; None = it is not.
        admit: makes associations of those guests that there is room for, and returns them.
    """

    def __init__(
        self,
        listening: socket.socket,
        *,
        seconds: float,
        tls: ssl.SSLContext | None,
        judge: Callable[[Request], Refusal | None],
        admit: Callable[[list[Guest]], list[Guest]],
    ) -> None:
        self._listening, self._seconds, self._tls, self._judge, self._admit = listening, seconds, tls, judge, admit
        self._guests: dict[Guest, None] = {}  # in the order they came
        self._seldom = _Seldom()
        self._selector = selectors.DefaultSelector()
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ)
        self._most = min(_MOST, os.sysconf("SC_OPEN_MAX") // 4)

    def __len__(self) -> int:
        return len(self._guests)

    def turn(self) -> None:
        """Wait a moment for what comes, and see to it."""
        asking = any(guest.request for guest in self._guests)  # for what another thread may end any moment
        for key, _ in self._selector.select(_TURN_SECONDS / 10 if asking else _TURN_SECONDS):
            if key.data is None:
                self._welcome()
            elif key.data in self._guests:
                self._listen_to(key.data)
        for guest in self._admit([guest for guest in self._guests if guest.request]):
            self._forget(guest)
        now = time.monotonic()
        late = [guest for guest in self._guests if now > guest.until]
        for guest in [guest for guest in late if guest.request]:
            self._refuse(guest, Refusal.NO_ROOM)
            late.remove(guest)
        for guest in late:
            if not guest.leaves:
                what = "did not send the rest of a PDU" if guest.data else "connection without an association"
                self._seldom.warn(what, f"{guest}: {what} within {self._seconds:g} s: closed")
            self._close(guest)

    def close(self) -> None:
        """Close every connection."""
        for guest in list(self._guests):
            self._close(guest)
        self._selector.close()

    def _welcome(self) -> None:
        for _ in range(_A_TURN):
            try:
                connection, address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no descriptor left, or the peer has gone
                self._seldom.warn("accept", f"a connection cannot be taken: {error.strerror}")
                time.sleep(_TURN_SECONDS / 10)
                return
            connection.setblocking(False)
            if self._tls is not None:
                try:
                    connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                except OSError:  # it has gone
                    connection.close()
                    continue
            self._make_place()
            guest = Guest(connection, address, time.monotonic() + self._seconds, self._tls is not None)
            self._guests[guest] = None
            self._selector.register(connection, selectors.EVENT_READ, guest)
            self._listen_to(guest)

    def _make_place(self) -> None:
        """Have the one go that waits longest of the address with the most."""
        if len(self._guests) < self._most:
            return
        most, _ = Counter(guest.address[0] for guest in self._guests).most_common(1)[0]
        oldest = next(guest for guest in self._guests if guest.address[0] == most)
        self._seldom.warn("many", f"{oldest} has no association: too many connections")
        self._close(oldest)

    def _listen_to(self, guest: Guest) -> None:
        events = selectors.EVENT_READ
        try:
            if guest.leaves:
                if not guest.connection.recv(HEAD_BYTES):
                    self._close(guest)
                return
            if guest.handshakes:
                guest.connection.do_handshake()  # type: ignore[attr-defined]
                guest.handshakes = False
            if self._read(guest):
                self._consider(guest)
            return
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except ssl.SSLWantWriteError:
            events = selectors.EVENT_WRITE
        except OSError as error:
            reason = getattr(error, "reason", None) or type(error).__name__
            self._seldom.warn("no peer", f"{guest} is no DICOM peer: {reason}")
            self._close(guest)
            return
        self._selector.modify(guest.connection, events, guest)

    def _read(self, guest: Guest) -> bool:
        """Read what is there of the first PDU and not a byte more; whether it is whole.

        Raises:
            OSError: there is nothing yet, or it is no request for association.
        """
        needed = HEAD_BYTES
        while True:
            if len(guest.data) >= HEAD_BYTES:
                kind, length = _HEAD.unpack(guest.data[:HEAD_BYTES])
                if kind != REQUEST_PDU or length > MAX_REQUEST:
                    self._seldom.warn("no request", f"{guest} is no DICOM peer: it asks for no association")
                    self._say(guest, _ABORT)
                    return False
                needed = HEAD_BYTES + length
            if len(guest.data) == needed:
                return True
            part = guest.connection.recv(needed - len(guest.data))
            if not part:
                self._seldom.warn("gone", f"{guest}: connection without an association")
                self._close(guest)
                return False
            guest.data += part

    def _consider(self, guest: Guest) -> None:
        """Refuse a request, or have it wait for its turn."""
        request = read_request(bytes(guest.data))
        refusal = self._judge(request)
        if refusal is not None:
            guest.request = request
            self._refuse(guest, refusal)
        else:
            self._unwatch(guest)
            guest.request, guest.until = request, time.monotonic() + PATIENCE_SECONDS

    def _refuse(self, guest: Guest, refusal: Refusal) -> None:
        request, guest.request = guest.request, None
        assert request is not None
        who, called = f"{request.calling} at {guest.address[0]}", printable(request.called)
        text = f"association with {who} rejected: {refusal.reason} (it called {called})"
        self._seldom.warn(f"{who} {refusal.reason}", text)
        self._say(guest, refusal.pdu)

    def _say(self, guest: Guest, pdu: bytes) -> None:
        """A last word; the connection stays a moment, or it would be lost on its way."""
        try:
            guest.connection.send(pdu)
            guest.connection.shutdown(socket.SHUT_WR)
            if not guest.is_watched:
                self._selector.register(guest.connection, selectors.EVENT_READ, guest)
                guest.is_watched = True
        except OSError:
            self._close(guest)
            return
        guest.leaves, guest.until = True, time.monotonic() + _FAREWELL_SECONDS

    def _forget(self, guest: Guest) -> None:
        del self._guests[guest]
        self._unwatch(guest)

    def _unwatch(self, guest: Guest) -> None:
        if guest.is_watched:
            self._selector.unregister(guest.connection)
            guest.is_watched = False

    def _close(self, guest: Guest) -> None:
        if guest in self._guests:
            self._forget(guest)
        guest.connection.close()


class _Seldom:
    """Warnings that a stranger can provoke as often as he likes: the first of its kind, then one now and then."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()

    def warn(self, kind: str, text: str) -> None:
        now = time.monotonic()
        if now - self._last.get(kind, -_QUIET_SECONDS) < _QUIET_SECONDS:
            self._left_out[kind] += 1
            return
        if len(self._last) > _MOST:
            self._last.clear()
        self._last[kind] = now
        more = self._left_out.pop(kind, 0)
        logger.warning("%s%s", text, f" (and {more} more like it)" if more else "")
