"""The transport of DICOM associations, tuned and bounded: pynetdicom's, without its waits and with limits.

A C-STORE is a ping-pong of small messages, and what it costs is waiting: Nagle's
algorithm against delayed acknowledgements (40 ms an instance from a sender that
does not know better), and the sleeps of pynetdicom's two loops (1 ms each, at each turn).
Here small segments leave at once, received ones are acknowledged at once, and
the loops wake up for what they wait for. What a peer can make this side hold is
bounded: bytes of a PDU, of a message, seconds of a PDU, and connections.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import socket
import socketserver
import ssl
import sys
import time
import weakref
from typing import Any

from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.fsm import StateMachine
from pynetdicom.transport import (
    T_CONNECT,
    AddressInformation,
    AssociationSocket,
    RequestHandler,
    ThreadedAssociationServer,
)

logger = logging.getLogger(__name__)

MAX_PDU = 256 * 1024
"""Bytes of a P-DATA PDU that peers may send: one for an ordinary slice. PS3.8, D.1."""
MAX_MESSAGE = 2 * 2**30
"""Bytes of one received message, command and data set: it is held in memory."""
_MAX_READ = 2**20  # bytes of any PDU: of an A-ASSOCIATE-RQ with every presentation context there can be, and more
_BACKLOG = 2  # messages not yet answered, from a peer that does not wait though it negotiated nothing else
_IDLE_SECONDS = 0.02  # until a loop looks at its timers though nothing came
_MESSAGE_SECONDS = 0.005  # until the association looks for a release though no message came
_SPARE_CONNECTIONS = 8  # above the associations: those that are rejected, politely

# pynetdicom's own lines quote data sets, and those of patients have no place in a log; ours say what happened.
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False
_config.STORE_SEND_CHUNKED_DATASET = True  # files are sent as they are; data sets are encoded
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


class _WakingQueue(queue.Queue):
    """A queue whose `put` is seen by `poll`."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        os.eventfd_write(self.descriptor, 1)

    def calm(self) -> None:
        """Forget that there was something."""
        os.eventfd_read(self.descriptor)


class TunedSocket(AssociationSocket):
    """A connection that waits for nothing but the peer, and for that not forever."""

    def __init__(
        self,
        assoc: Association,
        client_socket: socket.socket | None = None,
        address: AddressInformation | None = None,
    ) -> None:
        super().__init__(assoc, client_socket, address)
        assert self.socket is not None
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.failure: OSError | None = None
        self._outgoing = _WakingQueue()
        assoc.dul.to_provider_queue = self._outgoing
        assoc.dul._run_loop_delay = 0  # `ready` waits instead

    def connect(self, primitive: T_CONNECT) -> None:
        """Connect as pynetdicom does, but keep what failed, and wait for no read or write without end."""
        assert self.socket is not None
        try:
            self.socket.settimeout(self.assoc.connection_timeout)
            self.socket.connect(primitive.address_info.as_tuple)
            if self.tls_args:
                context, name = self.tls_args
                self.socket = context.wrap_socket(self.socket, server_hostname=name)
            self.socket.settimeout(self.assoc.network_timeout)
            self.assoc.requestor.address_info = AddressInformation.from_tuple(self.socket.getsockname())
            self._is_connected = True
            primitive.result = "Evt2"
        except OSError as error:
            self.failure = error
            self._shutdown_socket()
            self.socket = None
            primitive.result = "Evt17"
        finally:
            self.provider_queue.put(primitive)
            self._ready.set()

    @property
    def ready(self) -> bool:
        """Whether there is something to read; waits a moment for that, or for something to send."""
        if self.socket is None or not self._is_connected:
            time.sleep(_IDLE_SECONDS / 20)
            return False
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True
        try:
            poll = select.poll()
            poll.register(self.socket, select.POLLIN)
            poll.register(self._outgoing.descriptor, select.POLLIN)
            events = dict(poll.poll(_IDLE_SECONDS * 1000))
            if events.pop(self._outgoing.descriptor, 0):
                self._outgoing.calm()
            return bool(events)
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        """Read that many bytes, or fewer where the connection ends.

        Raises:
            OSError: they are too many, or took too long.
        """
        if nr_bytes > _MAX_READ:
            logger.warning("%s announces a PDU of %d bytes, at most %d: closed", self.peer, nr_bytes, _MAX_READ)
            raise ConnectionAbortedError(f"a PDU of {nr_bytes} bytes")
        try:
            return self._receive(nr_bytes)
        except TimeoutError:
            seconds = self.assoc.network_timeout
            logger.warning("%s did not send the rest of a PDU within %s s: closed", self.peer, seconds)
            raise

    def _receive(self, nr_bytes: int) -> bytearray:
        assert self.socket is not None
        data = bytearray(nr_bytes)
        view, position = memoryview(data), 0
        deadline = time.monotonic() + (self.assoc.network_timeout or float("inf"))
        while position < nr_bytes:
            count = self.socket.recv_into(view[position:])
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # the kernel forgets it
            if not count:
                view.release()
                del data[position:]
                break
            position += count
            if time.monotonic() > deadline:
                raise TimeoutError
        return data

    @property
    def peer(self) -> str:
        """Address and port of the other side."""
        side = self.assoc.requestor if self.assoc.is_acceptor else self.assoc.acceptor
        return ":".join(map(str, side.address_info.as_tuple[:2])) if side.address_info else "?"


class _TunedMessages(DIMSEServiceProvider):
    """Hands over a message as soon as it is there, and ends an association that sends too much."""

    def get_msg(self, block: bool = False) -> Any:
        if block:
            return super().get_msg(block=True)
        try:
            context_id, message = self.msg_queue.get(timeout=_MESSAGE_SECONDS)
        except queue.Empty:
            return None, None
        if message is not None and not message.is_valid_request:  # it would never be answered
            logger.warning("%s sent a %s that is no whole request: aborted", _peer(self.assoc), message.msg_type)
            self.assoc.abort(block=False)
            return None, None
        return context_id, message

    def receive_primitive(self, primitive: Any) -> None:
        super().receive_primitive(primitive)
        parts = (self.message.data_set, self.message.encoded_command_set) if self.message else ()
        size = sum(part.getbuffer().nbytes for part in parts if part)
        if size > MAX_MESSAGE:
            logger.warning("%s sent a message of more than %d bytes: aborted", _peer(self.assoc), MAX_MESSAGE)
        elif self.msg_queue.qsize() > _BACKLOG:
            logger.warning("%s sends requests without waiting for answers: aborted", _peer(self.assoc))
        else:
            return
        self.assoc.abort(block=False)


class _QuietMachine(StateMachine):
    """Ends the thread of a connection whose peer breaks the protocol, instead of letting it die with a traceback."""

    def do_action(self, event: str) -> None:
        try:
            super().do_action(event)
        except Exception as error:  # an event that is none in this state, or whatever a broken PDU leads to
            logger.warning("%s broke the protocol (%s): closed", _peer(self.dul.assoc), type(error).__name__)
            self.dul.kill_dul()


class _SharedContexts(list):
    """Supported contexts, which are only looked at: their copy for each association took 17 ms and megabytes."""

    def __deepcopy__(self, memo: Any) -> _SharedContexts:
        return self


class _TunedHandler(RequestHandler):
    """A connection that came in."""

    server: TunedServer

    def handle(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.server.handshakes.add(self.request)
            try:
                self.request.do_handshake()
            finally:
                self.server.handshakes.discard(self.request)
        super().handle()

    def _create_association(self) -> Association:
        assoc = super()._create_association()
        assoc.dul.event_queue.get_nowait()  # of the socket that this one takes the place of
        assoc.dul.socket = None
        assoc.set_socket(TunedSocket(assoc, client_socket=self.request))
        assoc.dimse = _TunedMessages(assoc)
        assoc.dul.state_machine = _QuietMachine(assoc.dul)
        if assoc.acse_timeout:  # two timers wait for the request; this one says that it did not come
            assoc.dul.artim_timer.timeout = 0.9 * assoc.acse_timeout
        return assoc


class TunedServer(ThreadedAssociationServer):
    """Takes connections, each in a thread of its own from the first byte: a TLS handshake keeps nobody waiting."""

    daemon_threads = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "request_handler": _TunedHandler})
        self.contexts = _SharedContexts(self.contexts)
        self.handshakes: set[ssl.SSLSocket] = set()  # of connections that are no association yet

    def get_request(self) -> tuple[socket.socket, Any]:
        assert self.socket is not None
        connection, address = self.socket.accept()
        connection.settimeout(self.ae.network_timeout)
        if self.ssl_context:
            wrap = self.ssl_context.wrap_socket
            connection = wrap(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse a flood before it costs threads; associations are counted when they are asked for."""
        connections = len(self.active_associations) + len(self.handshakes)
        if connections < self.ae.maximum_associations + _SPARE_CONNECTIONS:
            return True
        logger.warning("%s:%s has no association: too many connections", *client_address[:2])
        return False

    def shutdown(self) -> None:
        """Take no more connections. pynetdicom's own also forgets the server, which it does not know of here."""
        socketserver.BaseServer.shutdown(self)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in a line what came of a connection that was none, e.g. a TLS handshake that failed."""
        error = sys.exc_info()[1]
        reason = getattr(error, "reason", None) or type(error).__name__
        logger.warning("%s:%s is no DICOM peer: %s", *client_address[:2], reason)


class Requestor(Association):
    """An association that we asked for, without pynetdicom's loop, which has nothing to do in it.

    It may even take an answer that came quickly away from the call that waits for it: in pynetdicom 3.0.4
    `_is_paused` is set before the loop pauses. Here it is paused for good, since it never starts.
    """

    _is_paused = property(lambda self: True, lambda self, value: None)  # type: ignore[assignment]

    def start(self) -> None:
        """Start no loop."""


class TunedAE(AE):
    """An application entity whose connections are tuned, those it opens too."""

    def _create_socket(self, assoc: Association, address: AddressInformation, tls_args: Any) -> TunedSocket:
        assoc.__class__ = Requestor  # AE.associate names the class itself
        connection = TunedSocket(assoc, address=address)
        connection.tls_args = tls_args
        return connection


def _peer(assoc: Association) -> str:
    return assoc.dul.socket.peer if isinstance(assoc.dul.socket, TunedSocket) else "?"
