"""Other application entities: who they are, over which TLS they are spoken to, and why an association did not come."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext

from iopfl.base.errors import AssociationError, ConfigError
from iopfl.dimse.sockets import MAX_PDU, TunedAE, TunedSocket

__all__ = ["TLS", "Peer", "Timeouts", "associated", "check_ae_title"]

_AE_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")
_MAX_PORT = 65535


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait for a peer.

    Attributes:
        connection: for TCP, and for TLS after it.
        acse: for an answer to a request for association, or release.
        dimse: for an answer to a request within an association.
        network: for anything at all within an association, and for the rest of a PDU that began.
    """

    connection: float = 10.0
    acse: float = 30.0
    dimse: float = 60.0
    network: float = 60.0

    def apply(self, ae: TunedAE) -> None:
        """Have an application entity keep to them."""
        ae.connection_timeout, ae.acse_timeout = self.connection, self.acse
        ae.dimse_timeout, ae.network_timeout = self.dimse, self.network


@dataclass(frozen=True)
class TLS:
    """How to speak TLS (PS3.15, B.12: at least 1.2), each side showing the other a certificate.

    Attributes:
        ca: PEM certificates that peers' certificates must lead to.
        certificate: our own, PEM.
        key: the key of our certificate, PEM.
        name: that must stand in the certificate of a peer we call; empty = its host name.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    name: str = ""

    def __post_init__(self) -> None:
        missing = [str(path) for path in (self.ca, self.certificate, self.key) if path and not path.is_file()]
        if missing:
            raise ConfigError(f"TLS: expected PEM files, there is no {', '.join(missing)}")
        if bool(self.certificate) != bool(self.key):
            raise ConfigError("TLS: a certificate needs its key, and a key its certificate: give both")

    def client_context(self) -> ssl.SSLContext:
        """For associations that we request."""
        return self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def server_context(self) -> ssl.SSLContext:
        """For associations that we accept: of peers with a certificate only.

        Raises:
            ConfigError: there is no certificate of our own.
        """
        if not self.certificate:
            raise ConfigError("TLS: a listener needs a certificate and a key of its own")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._load(context)

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(self.ca)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or error.strerror
            raise ConfigError(f"TLS: expected PEM certificates and an unencrypted key of theirs: {reason}") from error
        return context


@dataclass(frozen=True)
class Peer:
    """An application entity that we may call.

    Attributes:
        ae_title: its own.
        host: name or address.
        port: where it listens.
        tls: None = plain.
    """

    ae_title: str
    host: str
    port: int
    tls: TLS | None = None

    def __post_init__(self) -> None:
        check_ae_title(self.ae_title)
        if not self.host or not 0 < self.port <= _MAX_PORT:
            raise ConfigError(f"{self.ae_title}: expected a host and a port from 1, given {self.host}:{self.port}")

    def __str__(self) -> str:
        return f"{self.ae_title} at {self.host}:{self.port}"


def check_ae_title(title: str) -> str:
    """An AE title as it is compared: without outer spaces (PS3.5, 6.2).

    Raises:
        ConfigError: it is none.

    >>> check_ae_title(" IOPFL ")
    'IOPFL'
    """
    if not _AE_TITLE.fullmatch(title) or not title.strip():
        raise ConfigError(f"expected an AE title of 1 to 16 characters without a backslash, given {title[:40]!r}")
    return title.strip()


@contextmanager
def associated(
    peer: Peer,
    contexts: Sequence[PresentationContext],
    *,
    ae_title: str,
    timeouts: Timeouts | None = None,
    negotiation: Sequence[Any] = (),
) -> Iterator[Association]:
    """An association with a peer for as long as the block lasts; released at its end, aborted where that failed.

    Args:
        peer: to be called.
        contexts: presentation contexts to ask for, at most 128.
        ae_title: our own.
        timeouts: None = the defaults.
        negotiation: more items to negotiate, e.g. roles.

    Raises:
        AssociationError: there is none; the message says why.
    """
    ae = TunedAE(check_ae_title(ae_title))
    timeouts = timeouts or Timeouts()
    timeouts.apply(ae)
    tls_args = (peer.tls.client_context(), peer.tls.name or peer.host) if peer.tls else None
    try:
        assoc = ae.associate(
            peer.host,
            peer.port,
            contexts=list(contexts),
            ae_title=peer.ae_title,
            max_pdu=MAX_PDU,
            ext_neg=list(negotiation),
            tls_args=tls_args,
        )
    except OSError as error:  # its name is not known
        raise AssociationError(f"{peer}: no such host ({error.strerror or error}): check its name") from error
    if not assoc.is_established:
        raise AssociationError(f"{peer}: {_describe_failure(assoc, timeouts)}")
    try:
        yield assoc
    except BaseException:
        assoc.abort()
        raise
    if assoc.is_established and assoc.dul.is_alive():
        assoc.release()
    else:
        assoc.abort()


def _describe_failure(assoc: Association, timeouts: Timeouts) -> str:
    """Why there is no association, and what to do."""
    connection, answer = assoc.dul.socket, assoc.acceptor.primitive
    error = connection.failure if isinstance(connection, TunedSocket) else None
    if isinstance(error, TimeoutError):
        return f"no connection within {timeouts.connection:g} s: check host, port and firewall"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection ({error.reason or error}): check that both sides trust the other's certificate"
    if error is not None:
        return f"no connection ({error.strerror or error}): check host, port and firewall"
    if assoc.is_rejected and isinstance(answer, A_ASSOCIATE):
        lasting = "for good" if answer.result == 1 else "for now"
        return f"association rejected {lasting}: {answer.reason_str.lower()} (we are {assoc.requestor.ae_title})"
    if isinstance(answer, A_ASSOCIATE) and answer.result == 0:
        return "it accepted the association, but none of the services or transfer syntaxes asked for"
    if assoc.is_aborted:
        return "association aborted before it began: check that it is a DICOM peer, and whether it expects TLS"
    return f"no answer to the request for association within {timeouts.acse:g} s"
