"""The messages of an association: handed over as soon as they are there, large instances in files, all bounded."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, N_EVENT_REPORT_RQ, DIMSEMessage
from pynetdicom.dsutils import create_file_meta, encode_file_meta

from iopfl.dimse.spool import Incoming, Spool

logger = logging.getLogger(__name__)

MAX_INSTANCE = 8 * 2**30
"""Bytes of the data set of one instance."""
MAX_MESSAGE = 16 * 2**20
"""Bytes of any other message, which is held in memory: a query, a request for the commitment of a whole study."""
_BACKLOG = 2  # messages not yet answered, from a peer that does not wait though it negotiated nothing else
_MESSAGE_SECONDS = 0.005  # until the association looks for a release though no message came

Place = Callable[[bytes], Incoming]
"""Begins the file of an instance that is coming, with its head."""


class BoundedMessages(DIMSEServiceProvider):
    """What an association receives.

    Args:
        assoc: the association.
        place: makes the files of large instances; None = they do not come.
    """

    def __init__(self, assoc: Association, place: Place | None) -> None:
        super().__init__(assoc)
        self._place = place
        self.is_serving = False
        """Whether a request is being answered."""
        self.waits_since: float | None = None
        """When, amid an answer, the peer was asked something."""

    def get_msg(self, block: bool = False) -> Any:
        """The next message, or (None, None)."""
        if block:
            self.waits_since = time.monotonic()
            try:
                return super().get_msg(block=True)
            finally:
                self.waits_since = None
        self.is_serving = False
        try:
            context_id, message = self.msg_queue.get(timeout=_MESSAGE_SECONDS)
        except queue.Empty:
            return None, None
        if message is not None and not message.is_valid_request:  # it would never be answered
            self._abort(f"a {message.msg_type} that is no whole request")
            return None, None
        self.is_serving = True
        return context_id, message

    def receive_primitive(self, primitive: Any) -> None:
        """Take the next part of a message."""
        if self.message is None:
            self.message = DIMSEMessage()
            self.message.data_set = Spool()
        message, spool = self.message, cast(Spool, self.message.data_set)
        super().receive_primitive(primitive)
        is_instance = isinstance(message, C_STORE_RQ)
        if isinstance(message, N_EVENT_REPORT_RQ):
            self._abort("an event report, which nobody asked for")
        elif self.message is None:
            if self.assoc.is_acceptor and self.msg_queue.qsize() > _BACKLOG:
                self._abort("requests without waiting for answers")
        elif message.encoded_command_set.getbuffer().nbytes + (0 if is_instance else spool.size) > MAX_MESSAGE:
            self._abort(f"a message of more than {MAX_MESSAGE} bytes")
        elif spool.size > MAX_INSTANCE:
            self._abort(f"an instance of more than {MAX_INSTANCE} bytes")
        elif is_instance and spool.begin is None:
            self._give_place(message, spool)

    def forget(self) -> None:
        """Let go of what came and will not be answered any more."""
        if self.message is not None and isinstance(self.message.data_set, Spool):
            self.message.data_set.discard()

    def _give_place(self, message: DIMSEMessage, spool: Spool) -> None:
        """Have the rest of an instance go to a file, once its command says what it is."""
        command, context = message.command_set, self.assoc._accepted_cx.get(cast(int, message.context_id))
        if self._place is None or context is None:
            self._abort("an instance, where none is taken")
            return
        try:
            class_uid, instance = str(command.AffectedSOPClassUID), str(command.AffectedSOPInstanceUID)
            head = file_head(class_uid, instance, str(context.transfer_syntax[0]))
        except Exception as error:  # of whatever kind a broken command leads to
            self._abort(f"a broken request ({type(error).__name__})")
            return
        place = self._place
        spool.begin = lambda: place(head)

    def _abort(self, what: str) -> None:
        logger.warning("%s sent %s: aborted", peer_of(self.assoc), what)
        self.forget()
        self.assoc.abort(block=False)


def file_head(sop_class: str, instance: str, syntax: str) -> bytes:
    """Preamble and file meta information (PS3.10, 7.1) of a received instance."""
    return _encode_head(sop_class, syntax, len(instance)).replace(b"9" * len(instance), instance.encode("ascii"))


@lru_cache(maxsize=256)
def _encode_head(sop_class: str, syntax: str, length: int) -> bytes:
    """A head for an instance whose UID is so many digits: encoding one takes longer than storing an instance."""
    meta = create_file_meta(
        sop_class_uid=UID(sop_class), sop_instance_uid=UID("9" * length), transfer_syntax=UID(syntax)
    )
    return b"\0" * 128 + b"DICM" + encode_file_meta(meta)


def peer_of(assoc: Association) -> str:
    """Address and port of the other side, for logs."""
    side = assoc.requestor if assoc.is_acceptor else assoc.acceptor
    return ":".join(map(str, side.address_info.as_tuple[:2])) if side.address_info else "?"
