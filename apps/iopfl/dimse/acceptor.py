"""The side that is called: whose request for association is granted, whose is not, and who makes room for whom.

Associations are few, and nobody keeps one that is of no use: when all are taken and
another peer asks, the one that has been silent longest ends, first of those who hold most.
"""

from __future__ import annotations

import logging
import socketserver
import threading
import time
from collections import Counter
from typing import Any, cast

from pynetdicom.association import Association
from pynetdicom.fsm import StateMachine
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from iopfl.dimse.asking import MAX_CONTEXTS, MAX_ITEMS, Refusal, Request
from iopfl.dimse.lobby import Guest, Lobby
from iopfl.dimse.messages import BoundedMessages, Place, peer_of
from iopfl.dimse.sockets import FileSender, TunedAE, TunedSocket

logger = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
"""Of silence, between requests, after which an association may have to make room."""
STUCK_SECONDS = 5.0
"""The same for a peer that takes no answers, or gives none to what it was asked."""

_PAUSE_SECONDS = 0.1
_ENDING = 16  # associations that are ending, above those that may be


class _QuietMachine(StateMachine):
    """Ends the thread of a connection whose peer breaks the protocol, instead of letting it die with a traceback."""

    def do_action(self, event: str) -> None:
        try:
            super().do_action(event)
        except Exception as error:  # an event that is none in this state, or whatever a broken PDU leads to
            logger.warning("%s broke the protocol (%s): closed", peer_of(self.dul.assoc), type(error).__name__)
            self.dul.kill_dul()


class _SharedContexts(list):
    """Supported contexts, which are only looked at: their copy for each association took 17 ms and megabytes."""

    def __deepcopy__(self, memo: Any) -> _SharedContexts:
        return self


class Accepted(FileSender):
    """An association that a peer asked for.

    Attributes:
        holder: the peer's address and AE title.
        is_ending: whether it was told to make room.
    """

    holder: tuple[str, str] = ("", "")
    is_ending = False

    def useless_seconds(self, now: float) -> float:
        """How long it has been of no use beyond what is granted to it; negative = it is of use."""
        connection, messages = cast(TunedSocket, self.dul.socket), cast(BoundedMessages, self.dimse)
        if not messages.is_serving:
            return now - connection.moved - IDLE_SECONDS
        since = connection.stuck_since or messages.waits_since
        return now - since - STUCK_SECONDS if since else -1.0

    def make_room(self) -> None:
        """End, even if the peer takes nothing any more."""
        self.is_ending = True
        self.abort(block=False)
        connection = self.dul.socket
        if isinstance(connection, TunedSocket) and connection.stuck_since:
            connection.cut()


class _TunedHandler(RequestHandler):
    """A request for association that is granted."""

    server: TunedServer

    def _create_association(self) -> Association:
        assoc = super()._create_association()
        guest = self.server.admitted
        assoc.__class__ = Accepted
        assoc.dul.event_queue.get_nowait()  # of the socket that this one takes the place of
        assoc.dul.socket = None
        assoc.set_socket(TunedSocket(assoc, client_socket=self.request, early=bytes(guest.data)))
        assoc.dimse = BoundedMessages(assoc, self.server.place)
        assoc.dul.state_machine = _QuietMachine(assoc.dul)
        cast(Accepted, assoc).holder = _holder(guest)
        return assoc


class TunedServer(ThreadedAssociationServer):
    """Takes connections; only those that are granted an association get threads.

    Attributes:
        most: associations at once.
        place: makes the files of large instances.
        admitted: whose association is being made.
    """

    request_queue_size = 128  # connections that come in a moment: of five the sixth would wait a second
    ae: TunedAE
    most = 1
    place: Place | None = None
    admitted: Guest

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "request_handler": _TunedHandler})
        self.contexts = _SharedContexts(self.contexts)
        self._stopping = threading.Event()

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Take connections until `shutdown`."""
        assert self.socket is not None
        seconds = self.ae.acse_timeout or float("inf")
        self.lobby = Lobby(
            self.socket, seconds=seconds, tls=self.ssl_context, judge=self._find_refusal, admit=self._admit
        )
        try:
            while not self._stopping.is_set():
                try:
                    self.lobby.turn()
                except Exception as error:  # of one connection: the others, and those to come, are taken all the same
                    logger.error("a connection failed (%s)", type(error).__name__)
                    self._stopping.wait(_PAUSE_SECONDS)
        finally:
            self.lobby.close()
            self.server_close()

    def shutdown(self) -> None:
        """Take no more connections."""
        self._stopping.set()

    def server_close(self) -> None:
        """Close the listening socket; pynetdicom's own forgets the server, which it does not know of here."""
        socketserver.TCPServer.server_close(self)

    def _find_refusal(self, request: Request) -> Refusal | None:
        allowed = [title.strip() for title in self.ae.require_calling_aet]
        if request.called != self.ae_title.strip():
            return Refusal.CALLED
        if allowed and request.calling not in allowed:
            return Refusal.CALLING
        if request.contexts > MAX_CONTEXTS or request.items > MAX_ITEMS:
            return Refusal.TOO_MUCH
        return None

    def _admit(self, guests: list[Guest]) -> list[Guest]:
        """Grant associations to those that there is room for, or can be; first to those who hold fewest."""
        admitted: list[Guest] = []
        if not guests:
            return admitted
        threads = cast(list[Accepted], self.active_associations)
        running = [assoc for assoc in threads if not assoc.is_ending and assoc.dul.is_alive()]
        held = Counter(assoc.holder for assoc in running)
        for guest in sorted(guests, key=lambda guest: held[_holder(guest)]):
            if len(threads) >= self.most + _ENDING:
                break
            if len(running) >= self.most:
                useless = _find_useless(running, held, _holder(guest))
                if useless is None:
                    continue
                logger.warning("association with %s at %s ends to make room", *useless.holder[::-1])
                useless.make_room()
                running.remove(useless)
                held[useless.holder] -= 1
            if self._begin(guest):
                held[_holder(guest)] += 1
                threads = cast(list[Accepted], self.active_associations)
                running = [assoc for assoc in threads if not assoc.is_ending]
            admitted.append(guest)
        return admitted

    def _begin(self, guest: Guest) -> bool:
        """Make an association of a guest."""
        self.admitted = guest
        try:
            guest.connection.settimeout(self.ae.network_timeout)
            self.finish_request(guest.connection, guest.address)
        except Exception as error:  # it has gone, or there are no threads left
            logger.warning("%s gets no association: %s", guest, type(error).__name__)
            guest.connection.close()
            return False
        return True


def _find_useless(running: list[Accepted], held: Counter[tuple[str, str]], asks: tuple[str, str]) -> Accepted | None:
    """Who has to make room for one that asks: nobody for a peer that holds as many itself."""
    now = time.monotonic()
    candidates = [
        (held[assoc.holder], assoc.useless_seconds(now), number)
        for number, assoc in enumerate(running)
        if assoc.holder == asks or held[assoc.holder] > held[asks]
    ]
    useless = [candidate for candidate in candidates if candidate[1] >= 0]
    return running[max(useless)[2]] if useless else None


def _holder(guest: Guest) -> tuple[str, str]:
    assert guest.request is not None
    return guest.address[0], guest.request.calling
