"""The storage SCP: takes associations, verifies (C-ECHO), stores (C-STORE), and says in a line what it refused.

Instances are written as they came, neither decoded nor encoded again; of each only
the identifying header is read. The lines have UIDs, AE titles and addresses, and nothing of the patient.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, cast

from pydicom import Dataset, uid
from pydicom.filereader import read_dataset
from pydicom.uid import UID
from pynetdicom import AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from iopfl.base.errors import ConfigError, SeriesError
from iopfl.dicomio.showing import show_uid
from iopfl.dimse.acceptor import TunedServer
from iopfl.dimse.asking import printable
from iopfl.dimse.inbox import Inbox, Instance
from iopfl.dimse.messages import BoundedMessages, file_head
from iopfl.dimse.peers import TLS, Timeouts, check_ae_title
from iopfl.dimse.room import InboxFullError
from iopfl.dimse.sockets import MAX_PDU, TunedAE
from iopfl.dimse.spool import Incoming, Spool

logger = logging.getLogger(__name__)

SUCCESS = 0x0000
NOT_SUPPORTED = 0x0122
OUT_OF_RESOURCES = 0xA700
MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
"""Statuses of C-STORE (PS3.4, B.2.3)."""

TRANSFER_SYNTAXES: tuple[UID, ...] = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.JPEG2000Lossless,
    uid.JPEGLSLossless,
    uid.RLELossless,
    uid.JPEG2000,
    uid.JPEGLSNearLossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
)
"""Those that can be decoded; a context without one of them is refused."""

STORED: tuple[UID, ...] = tuple(UID(str(context.abstract_syntax)) for context in AllStoragePresentationContexts)
"""Every storage SOP class of the standard: a study that is sent whole shall not fail at its report. What is no image
is kept, but not segmented."""

UNCOMPRESSED: tuple[UID, ...] = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
"""Transfer syntaxes of everything but storage. Not deflated: a small request must not become a large one."""

MAX_ASSOCIATIONS = 16

Record = Callable[[str, str, Mapping[str, str]], None]
"""Takes down for good what was done: the AE title that it was done for, what, and about what; OSError = it cannot."""

_LAST_READ = 0x0020FFFF  # what identifies an instance lies in groups 0008 to 0020
_DEFERRED = 64 * 1024  # bytes of an element that is not read with it
_MAX_COMMENT = 64
_MAX_PORT = 65535
_MAX_NAMED = 5  # SOP classes in a line of the log


@dataclass(frozen=True, kw_only=True)
class SCPSettings:
    """How to listen.

    Attributes:
        ae_title: our own; requests for another are rejected.
        host: address to listen on.
        port: port to listen on; 0 for any that is free.
        allow: calling AE titles; empty = every one.
        max_associations: at once; the next are rejected for now.
        tls: with it peers need a certificate; None = plain.
        timeouts: how long to wait in associations.
    """

    ae_title: str = "IOPFL"
    host: str = "127.0.0.1"
    port: int = 11112
    allow: tuple[str, ...] = ()
    max_associations: int = MAX_ASSOCIATIONS
    tls: TLS | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        for title in (self.ae_title, *self.allow):
            check_ae_title(title)
        if self.max_associations < 1:
            raise ConfigError(f"expected at least one association, given {self.max_associations}")
        if not 0 <= self.port <= _MAX_PORT:
            raise ConfigError(f"expected a port from 0 to {_MAX_PORT}, given {self.port}")


class StorageSCP:
    """Listens until it is told to stop.

    Args:
        settings: how to listen.
        inbox: where instances go.
        services: further `(SOP classes, (event, handler) pairs)`, e.g. query and retrieve.

    Raises:
        ConfigError: the address cannot be listened on, or TLS cannot be set up.
    """

    def __init__(
        self, settings: SCPSettings, inbox: Inbox, services: Sequence[tuple[Sequence[str], Sequence[Any]]] = ()
    ) -> None:
        self._inbox = inbox
        ae = TunedAE(check_ae_title(settings.ae_title))
        settings.timeouts.apply(ae)
        ae.maximum_associations = 2**31  # the server counts itself, before anything is spent on them
        ae.maximum_pdu_size = MAX_PDU
        ae.require_called_aet = True
        ae.require_calling_aet = [check_ae_title(title) for title in settings.allow]
        ae.add_supported_context(Verification, list(UNCOMPRESSED))
        for sop_class in STORED:  # both roles: who retrieves by C-GET stores on its own association
            ae.add_supported_context(sop_class, list(TRANSFER_SYNTAXES), scu_role=True, scp_role=True)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_ACCEPTED, _log_accepted),
            (evt.EVT_ABORTED, _log_aborted),
            (evt.EVT_CONN_CLOSE, self._close),
        ]
        for sop_classes, more in services:
            for served in sop_classes:
                ae.add_supported_context(served, list(UNCOMPRESSED), scu_role=True, scp_role=True)
            handlers += more
        context = settings.tls.server_context() if settings.tls else None
        try:
            address = (settings.host, settings.port)
            server = ae.make_server(address, ssl_context=context, evt_handlers=handlers, server_class=TunedServer)
            self._server = cast(TunedServer, server)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}; choose another --port"
            ) from error
        self._server.most = settings.max_associations
        self._server.place = lambda head: inbox.receive((head,))
        self._is_full = False
        self._thread = threading.Thread(target=self._server.serve_forever, name="dicom-accept")

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Take associations, in threads of their own."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more, and abort those there are: what was not answered was not accepted."""
        self._server.shutdown()
        for assoc in self._server.active_associations:
            assoc.abort(block=False)
        self._thread.join()

    def _store(self, event: Event) -> int | Dataset:
        """Answer a C-STORE request."""
        came = cast(Spool, cast(Any, event.request).DataSet)
        try:
            instance = read_instance(event)
            if came.failure is not None:
                raise came.failure
            self._inbox.store(instance, whole_file(event), event.assoc)
        except RefusedError as refusal:
            return _refuse(event, refusal.status, str(refusal))
        except InboxFullError as error:
            return self._refuse_for_now(event, str(error))
        except SeriesError as error:
            return _refuse(event, CANNOT_UNDERSTAND, str(error))
        except OSError as error:  # a full disk
            return self._refuse_for_now(event, f"cannot be written: {error.strerror or type(error).__name__}")
        except Exception as error:  # whatever else: an association must not die of one instance
            return _refuse(event, CANNOT_UNDERSTAND, f"cannot be stored: {type(error).__name__}")
        finally:
            came.discard()
        if self._is_full:
            self._is_full = False
            logger.info("there is room for instances again")
        return SUCCESS

    def _refuse_for_now(self, event: Event, reason: str) -> Dataset:
        """Refuse for want of room, and say so once: senders go on trying."""
        if self._is_full:
            return _answer(OUT_OF_RESOURCES, reason)
        self._is_full = True
        return _refuse(event, OUT_OF_RESOURCES, f"{reason}; so are all others until there is room")

    def _close(self, event: Event) -> None:
        assoc = event.assoc
        self._inbox.ended(assoc)
        cast(BoundedMessages, assoc.dimse).forget()
        if not (assoc.is_released or assoc.is_aborted or assoc.is_rejected) and not assoc.is_established:
            logger.warning("%s: connection without an association", describe_peer(assoc))


def record_nothing(ae_title: str, what: str, about: Mapping[str, str]) -> None:
    """A `Record` where none is kept."""


class RefusedError(Exception):
    """An instance that is not accepted."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def describe_peer(assoc: Association) -> str:
    """AE title and address of a peer, for logs."""
    address = assoc.requestor.address_info
    return f"{printable(assoc.requestor.ae_title)} at {address.address if address else '?'}"


def read_header(data: bytes, syntax: UID) -> Dataset:
    """What identifies an encoded data set: its groups up to 0020.

    Raises:
        Exception: of whatever kind pydicom raises on broken bytes.
    """
    return read_dataset(
        BytesIO(data),
        syntax.is_implicit_VR,
        syntax.is_little_endian,
        stop_when=lambda tag, *_: tag > _LAST_READ,
        defer_size=_DEFERRED,
    )


def read_instance(event: Event) -> Instance:
    """What a C-STORE request brings.

    Raises:
        RefusedError: it is not understood, or not what the request says.
    """
    request, assoc = cast(Any, event.request), event.assoc
    if request.AffectedSOPClassUID != event.context.abstract_syntax:
        raise RefusedError(NOT_SUPPORTED, "its SOP class is not that of the presentation context")
    try:
        ds = read_header(request.DataSet.getvalue(), UID(event.context.transfer_syntax))
        keywords = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
        sop_class, instance, series, study = (str(ds.get(keyword) or "") for keyword in keywords)
        expected = str(ds.get("NumberOfSeriesRelatedInstances") or "")
    except Exception as error:  # pydicom's have no common base
        raise RefusedError(CANNOT_UNDERSTAND, f"the data set cannot be read: {type(error).__name__}") from error
    if (sop_class, instance) != (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID):
        raise RefusedError(MISMATCH, "SOP class or instance of the data set are not those of the request")
    called = assoc.acceptor.ae_title
    return Instance(
        series_instance_uid=series,
        study_instance_uid=study,
        sop_instance_uid=instance,
        calling=printable(assoc.requestor.ae_title),
        called=printable(called),
        expected=int(expected) if expected.isdecimal() else 0,
    )


def whole_file(event: Event) -> Incoming | tuple[bytes, Any]:
    """A received instance: the file that it was written to, or the parts of one."""
    request = cast(Any, event.request)
    if request.DataSet.file is not None:
        return cast(Incoming, request.DataSet.file)
    class_uid, instance = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
    return file_head(class_uid, instance, str(event.context.transfer_syntax)), request.DataSet.getbuffer()


def _refuse(event: Event, status: int, reason: str) -> Dataset:
    """The answer to a request for an instance that is not accepted, and the line about it."""
    instance = show_uid(cast(Any, event.request).AffectedSOPInstanceUID)
    logger.warning("instance %s from %s refused, 0x%04X: %s", instance, describe_peer(event.assoc), status, reason)
    return _answer(status, reason)


def _answer(status: int, reason: str) -> Dataset:
    ds = Dataset()
    ds.Status, ds.ErrorComment = status, reason[:_MAX_COMMENT]
    return ds


def _log_accepted(event: Event) -> None:
    assoc = event.assoc
    logger.info("association with %s accepted", describe_peer(assoc))
    refused: dict[str, list[str]] = {}
    for context in assoc.rejected_contexts:
        sop_class = UID(printable(context.abstract_syntax))
        known = sop_class in STORED or sop_class == Verification
        reason = "none of its transfer syntaxes can be decoded" if known else "this SOP class is not served"
        refused.setdefault(reason, []).append(sop_class.name)
    for reason, names in refused.items():
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        logger.warning(
            "%s asked for %s%s: refused, %s", describe_peer(assoc), ", ".join(names[:_MAX_NAMED]), more, reason
        )


def _log_aborted(event: Event) -> None:
    assoc = event.assoc
    if not assoc._sent_abort:
        how = "by the peer, or its connection was lost"
    elif assoc.dul.idle_timer_expired():
        how = f"after {assoc.network_timeout:g} s of silence"
    else:
        how = "by us"
    logger.warning("association with %s aborted %s", describe_peer(assoc), how)
