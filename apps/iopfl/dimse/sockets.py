"""The transport of DICOM associations, tuned and bounded: pynetdicom's, without its waits and with limits.

A C-STORE is a ping-pong of small messages, and what it costs is waiting: Nagle's
algorithm against delayed acknowledgements (40 ms per instance from a sender that
does not know better), and the sleeps of pynetdicom's two loops (1 ms each, at each turn).
Here small segments leave at once, received ones are acknowledged at once, and
the loops wake up for what they wait for. What a peer can make this side hold is
bounded: bytes of a PDU and of a message, seconds of a PDU.

This, `messages` and `acceptor` rest on what pynetdicom does not promise;
`pyproject.toml` bounds its version, and a test names what is used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import socket
import ssl
import time
import weakref
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

from iopfl.dimse.messages import BoundedMessages, peer_of

logger = logging.getLogger(__name__)

MAX_PDU = 256 * 1024
"""Bytes of a P-DATA PDU that peers may send: one for an ordinary slice. PS3.8, D.1."""
_MAX_READ = 2**20  # bytes of any PDU: more than was asked for, since not all count alike
_IDLE_SECONDS = 0.02  # until a loop looks at its timers though nothing came

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
        early: bytes = b"",
    ) -> None:
        """Args beyond pynetdicom's:
        early: what was read already.
        """
        super().__init__(assoc, client_socket, address)
        assert self.socket is not None
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.failure: OSError | None = None
        self.moved = time.monotonic()
        """When the peer last sent or took something."""
        self.stuck_since: float | None = None
        """When it was given something that it has not taken."""
        self._early = memoryview(early)
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
        if self._early or (isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()):
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
            logger.warning(
                "%s announces a PDU of %d bytes, at most %d: closed", peer_of(self.assoc), nr_bytes, _MAX_READ
            )
            raise ConnectionAbortedError(f"a PDU of {nr_bytes} bytes")
        try:
            return self._receive(nr_bytes)
        except TimeoutError:
            seconds = self.assoc.network_timeout
            logger.warning("%s did not send the rest of a PDU within %s s: closed", peer_of(self.assoc), seconds)
            raise

    def _receive(self, nr_bytes: int) -> bytearray:
        assert self.socket is not None
        if self._early:
            part, self._early = self._early[:nr_bytes], self._early[nr_bytes:]
            return bytearray(part)
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
            self.moved = time.monotonic()
            if self.moved > deadline:
                raise TimeoutError
        return data

    def send(self, bytestream: bytes) -> None:
        """Send, as pynetdicom does, and note whether the peer takes it."""
        assert self.socket is not None
        view = memoryview(bytestream)
        try:
            while view:
                self.stuck_since = time.monotonic()
                view = view[self.socket.send(view) :]
                self.moved = time.monotonic()
        except Exception:  # as there: whatever it is, the connection is lost
            self.event_queue.put("Evt17")
        finally:
            self.stuck_since = None

    def cut(self) -> None:
        """End the connection at once, whatever is waited for."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)


class OnDisk(Dataset):
    """An instance that is sent from its file, as it is there: too large to be held in memory.

    Args:
        path: the file.
        sop_instance_uid: its SOP Instance UID.
    """

    def __init__(self, path: Path, sop_instance_uid: str) -> None:
        super().__init__()
        self.path = path
        self.SOPInstanceUID = sop_instance_uid


class FileSender(Association):
    """An association that sends files where it is given `OnDisk`."""

    def send_c_store(self, dataset: Any, *more: Any, **options: Any) -> Dataset:
        """As pynetdicom's."""
        return super().send_c_store(dataset.path if isinstance(dataset, OnDisk) else dataset, *more, **options)


class Requestor(FileSender):
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
        assoc.dimse = BoundedMessages(assoc, place=None)
        connection = TunedSocket(assoc, address=address)
        connection.tls_args = tls_args
        return connection
