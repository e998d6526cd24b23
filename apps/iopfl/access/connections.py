"""How many connections there may be, and for how long somebody may send a request.

uvicorn waits forever for a header or a body that comes byte by byte, and its own `limit_concurrency` turns away
whoever comes once there are that many connections, those that say nothing among them. The times and the rate are
like those of Apache's mod_reqtimeout.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import termios
from fcntl import ioctl
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

MOST = 512
"""Connections at once; below the 1024 files that a process may usually have open."""
HEADER_SECONDS = 20.0
"""For a whole header, counted from the start of the connection or from the answer before."""
BODY_RATE = 500
"""Bytes per second that a client must send of a body, at least."""
BODY_SECONDS = 30.0
"""Over which that rate is counted."""
ANSWER_SECONDS = 60.0
"""Over which a client must take an answer at that rate, once there is more of it than the connection holds."""
_STEP = 1.0  # seconds from one look at a connection to the next


class BoundedConnection(H11Protocol):
    """A connection of uvicorn's that ends when its client keeps it waiting, or when others need its place.

    An answer may take as long as it takes to be made, and to be sent to who takes it.
    """

    most, header_seconds, body_seconds, answer_seconds = MOST, HEADER_SECONDS, BODY_SECONDS, ANSWER_SECONDS
    _said = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._came = 0
        self._since = 0.0
        self._full_since, self._untaken = 0.0, 0

    @property
    def is_waiting(self) -> bool:
        """Whether a whole header is still to come."""
        return self.conn.their_state is h11.IDLE

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, in place of the one that has said nothing for longest if there are too many."""
        super().connection_made(transport)
        self._begin()
        if len(self.connections) > self.most:
            self._make_room()
        self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        """Watch it no more."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes; with the header, the time of the body begins."""
        was_waiting = self.is_waiting
        self._came += len(data)
        super().data_received(data)
        if was_waiting and not self.is_waiting:
            self._begin()

    def on_response_complete(self) -> None:
        """Begin to wait for the next header."""
        self._begin()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to wait for the client to take what there is of an answer."""
        super().pause_writing()
        self._begin_to_send()

    def _begin_to_send(self) -> None:
        self._full_since, self._untaken = self.loop.time(), self._count_untaken()

    def _count_untaken(self) -> int:
        """Bytes that the client has not taken, here and in the kernel (tty_ioctl(4), TIOCOUTQ)."""
        connection = self.transport.get_extra_info("socket")
        queued = ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int(struct.unpack("i", queued)[0])

    def _is_left_alone(self) -> bool:
        """Whether the client does not take its answer."""
        passed = self.loop.time() - self._full_since
        if not self.flow.write_paused or passed < self.answer_seconds:
            return False
        taken = self._untaken - self._count_untaken()
        self._begin_to_send()
        return taken < BODY_RATE * passed

    def _begin(self) -> None:
        self._since, self._came = self.loop.time(), 0

    def _check(self) -> None:
        """End the connection if its client takes too long."""
        passed = self.loop.time() - self._since
        if (self.is_waiting and passed >= self.header_seconds) or self._is_left_alone():
            self.transport.abort()
            return
        if self.conn.their_state is not h11.SEND_BODY or self._waits_for_us():
            if not self.is_waiting:
                self._begin()
        elif passed >= self.body_seconds:
            if self._came < BODY_RATE * passed:
                self.transport.abort()
                return
            self._begin()
        self._timer = self.loop.call_later(_STEP, self._check)

    def _waits_for_us(self) -> bool:
        return self.flow.read_paused or (self.cycle is not None and self.cycle.waiting_for_100_continue)

    def _asks_ahead(self) -> bool:
        """Whether more requests came before an answer was there, as no browser and no client of ours has it."""
        return not self.is_waiting and self.conn.their_state is h11.DONE and bool(self.conn.trailing_data[0])

    def _keeps_waiting(self) -> bool:
        return self.is_waiting or self.flow.write_paused or self._asks_ahead()

    def _waits_since(self) -> float:
        """Time of the event loop; who asks ahead comes before all others."""
        if self._asks_ahead():
            return 0.0
        return self._full_since if self.flow.write_paused else self._since

    def _make_room(self) -> None:
        open_ones = [one for one in self.connections if not one.transport.is_closing()]
        if len(open_ones) <= self.most:
            return
        ours = [one for one in open_ones if isinstance(one, BoundedConnection)]
        last = min((one for one in ours if one._keeps_waiting()), key=BoundedConnection._waits_since)
        sending = [one for one in ours if one.conn.their_state is h11.SEND_BODY and not one._waits_for_us()]
        if last is self and sending:  # nobody waits for longer, but for those whose bodies come bit by bit
            last = min(sending, key=BoundedConnection._waits_since)
        last.transport.abort()  # this one, if all others are being answered
        if not BoundedConnection._said:
            BoundedConnection._said = True
            logger.warning(
                "more than %d connections: those that send no request or take no answer lose their place", self.most
            )
