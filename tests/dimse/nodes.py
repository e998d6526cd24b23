"""DICOM nodes on loopback: our SCP, a plain peer that stores, plain senders, certificates, DCMTK's programs."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import MRImageStorage, StorageCommitmentPushModel, Verification

from dicomio.phantoms import build_slices, need_program
from iopfl.dimse.inbox import Inbox
from iopfl.dimse.peers import Peer, Timeouts
from iopfl.dimse.queue import Queue
from iopfl.dimse.scp import SCPSettings, StorageSCP
from iopfl.dimse.sockets import Requestor

HERE = "127.0.0.1"
SECONDS = 20.0
"""To wait for what another thread does; never what is tested."""


def make_slices(count: int = 4, *, series: str = "a series", size: int = 16, seed: int = 0) -> list[Dataset]:
    """Slices of a series of square images."""
    voxels = np.random.default_rng(seed).integers(0, 900, size=(size, size, count), dtype=np.int16)
    return build_slices(voxels, series=series)


def eventually(condition: Callable[[], Any], what: str = "it", seconds: float = SECONDS) -> Any:
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds:g} s for {what}")


@dataclass(frozen=True)
class Node:
    """Our SCP, and its inbox."""

    scp: StorageSCP
    inbox: Inbox

    @property
    def port(self) -> int:
        return self.scp.port

    @property
    def peer(self) -> Peer:
        return Peer("IOPFL", HERE, self.port)

    def stored(self) -> list[Path]:
        """Every file in the inbox."""
        return sorted(path for job in self.inbox.queue.jobs() for path in self.inbox.files(job.series_instance_uid))


@contextmanager
def running_scp(
    folder: Path, *, services: Any = (), max_bytes: int | None = None, min_free: int = 0, **settings: Any
) -> Iterator[Node]:
    """Our SCP on a free port, for as long as the block lasts."""
    inbox = Inbox(folder, Queue(folder / "queue"), max_bytes=max_bytes, min_free=min_free)
    scp = StorageSCP(SCPSettings(port=0, **settings), inbox, services(inbox) if callable(services) else services)
    scp.start()
    try:
        yield Node(scp, inbox)
    finally:
        scp.stop()


class _PlainAE(AE):
    """An application entity without any tuning, and without the fault of pynetdicom's that `Requestor` is about."""

    def _create_socket(self, assoc: Association, *arguments: Any) -> Any:
        assoc.__class__ = Requestor
        return super()._create_socket(assoc, *arguments)


@contextmanager
def plain_association(
    port: int, contexts: Sequence[Any] = (), *, aet: str = "SCANNER", aec: str = "IOPFL", **options: Any
) -> Iterator[Association]:
    """An association as any program would make it; established or not."""
    ae = _PlainAE(aet)
    ae.acse_timeout = ae.dimse_timeout = SECONDS
    wanted = list(contexts) or [build_context(Verification), build_context(MRImageStorage, ExplicitVRLittleEndian)]
    assoc = ae.associate(HERE, port, wanted, aec, **options)
    try:
        yield assoc
    finally:
        if assoc.is_established and assoc.dul.is_alive():
            assoc.release()
        else:
            assoc.abort()


def send_plainly(port: int, datasets: Sequence[Dataset], **options: Any) -> list[int]:
    """Statuses of the C-STOREs of some instances, on one association."""
    kinds = dict.fromkeys((ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in datasets)
    with plain_association(port, [build_context(*kind) for kind in kinds], **options) as assoc:
        return [assoc.send_c_store(ds).Status for ds in datasets]


@dataclass
class StoragePeer:
    """A plain peer that keeps what it gets."""

    port: int
    ae_title: str = "PACS"
    received: list[Dataset] = field(default_factory=list)
    reports: list[Dataset] = field(default_factory=list)
    status: int = 0x0000

    @property
    def peer(self) -> Peer:
        return Peer(self.ae_title, HERE, self.port)


@contextmanager
def storage_peer(*, port: int = 0, contexts: Sequence[Any] | None = None, **options: Any) -> Iterator[StoragePeer]:
    """A plain peer for as long as the block lasts."""

    def store(event: evt.Event) -> int:
        ds = event.dataset
        ds.file_meta = event.file_meta
        if peer.status == 0:
            peer.received.append(ds)
        return peer.status

    def report(event: evt.Event) -> tuple[int, None]:
        peer.reports.append(event.event_information)
        return 0x0000, None

    ae = AE("PACS")
    ae.supported_contexts = list(contexts) if contexts is not None else AllStoragePresentationContexts
    ae.add_supported_context(Verification)
    ae.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_C_STORE, store), (evt.EVT_N_EVENT_REPORT, report)]
    server = ae.start_server((HERE, port), block=False, evt_handlers=handlers, **options)
    peer = StoragePeer(server.server_address[1])
    try:
        yield peer
    finally:
        server.shutdown()


def quick_timeouts(seconds: float = 1.0) -> Timeouts:
    """Timeouts for tests of what happens when nothing does."""
    return Timeouts(connection=seconds, acse=seconds, dimse=seconds, network=seconds)


def run_dcmtk(program: str, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of DCMTK's programs; the test is skipped where it is not installed."""
    command = [need_program(program), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=check)


def read_all(folder: Path) -> dict[str, Dataset]:
    """Instances in a folder, by UID."""
    found = [dcmread(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(ds.SOPInstanceUID): ds for ds in found}


def make_certificates(folder: Path) -> Path:
    """Write `ca.pem`, `node.pem` and `node.key` of it, and the same of a stranger in `stranger/`."""
    for place in (folder, folder / "stranger"):
        place.mkdir(parents=True, exist_ok=True)
        authority, authority_key = _certificate("authority", None, None)
        certificate, key = _certificate("node", authority, authority_key)
        (place / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
        (place / "node.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (place / "node.key").write_bytes(key.private_bytes(*form))
    return folder


def _certificate(name: str, issuer: Any, issuer_key: Any) -> tuple[Any, Any]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HERE))]), False
        )
    )
    return builder.sign(issuer_key or key, hashes.SHA256()), key
