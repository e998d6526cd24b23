"""What can be told of a request for association (PS3.8, 9.3.2) before anybody spends threads and memory on it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

REQUEST_PDU = 1
HEAD_BYTES = 6
MAX_REQUEST = 256 * 1024
"""Bytes of an A-ASSOCIATE-RQ behind its head; one that names every storage class in all its syntaxes has 100 KB."""

MAX_CONTEXTS = 128
"""Presentation contexts (PS3.8, 7.1.1.13)."""
MAX_ITEMS = 6000
"""Transfer syntaxes and negotiation items, all together; they take a tenth of a second to read."""

_CALLED, _CALLING = slice(10, 26), slice(26, 42)
_ITEMS = 74  # where they begin
_ITEM = struct.Struct(">BxH")
_CONTEXT, _USER_INFORMATION = 0x20, 0x50
_CONTEXT_HEAD = 4  # bytes of a context before its own items


@dataclass(frozen=True)
class Request:
    """A request for association, as far as that can be told at a glance.

    Attributes:
        called: AE title that is asked for.
        calling: AE title that asks.
        contexts: presentation contexts.
        items: all that is negotiated, within the contexts and besides them.
    """

    called: str
    calling: str
    contexts: int = 0
    items: int = 0


class Refusal(Enum):
    """Why an association is rejected: result, source and reason (PS3.8, 9.3.4)."""

    CALLED = (1, 1, 7, "Called AE title not recognized")
    CALLING = (1, 1, 3, "Calling AE title not recognized")
    NO_ROOM = (2, 3, 2, "Local limit exceeded")
    TOO_MUCH = (1, 3, 2, "Local limit exceeded by what it wants to negotiate")

    @property
    def reason(self) -> str:
        """In words."""
        return self.value[3]

    @property
    def pdu(self) -> bytes:
        """The A-ASSOCIATE-RJ."""
        return struct.pack(">BxLxBBB", 3, 4, *self.value[:3])


def read_request(pdu: bytes) -> Request:
    """Read a whole A-ASSOCIATE-RQ; what is broken in it is counted as far as it goes."""
    called, calling = (pdu[part].decode("ascii", "replace").strip(" \0") for part in (_CALLED, _CALLING))
    contexts = items = 0
    for kind, start, end in _items(pdu, _ITEMS, len(pdu)):
        contexts += kind == _CONTEXT
        items += 1
        if kind in (_CONTEXT, _USER_INFORMATION):
            items += sum(1 for _ in _items(pdu, start + (_CONTEXT_HEAD if kind == _CONTEXT else 0), end))
    return Request(printable(called), printable(calling), contexts, items)


def _items(pdu: bytes, start: int, end: int) -> list[tuple[int, int, int]]:
    """Kind, and where the content begins and ends, of the items in a part of a PDU."""
    found = []
    while start + _ITEM.size <= end:
        kind, length = _ITEM.unpack_from(pdu, start)
        start += _ITEM.size
        found.append((kind, start, min(start + length, end)))
        start += length
    return found


def printable(value: object) -> str:
    """What a peer said, fit for a line of a log.

    >>> printable("ORTHANC"), printable("A\\nroot logged in")
    ('ORTHANC', 'A?root logged in')
    """
    return "".join(letter if " " <= letter <= "~" else "?" for letter in str(value or ""))[:64].strip() or "?"
