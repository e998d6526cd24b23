"""What goes over the wire to an SCP, byte by byte, whole and damaged; seeded."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.dimse_messages import C_ECHO_RQ, C_FIND_RQ, C_STORE_RQ
from pynetdicom.dimse_primitives import C_ECHO, C_FIND, C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_RQ, A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import (
    A_ABORT,
    A_ASSOCIATE,
    A_RELEASE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.sop_class import MRImageStorage, StudyRootQueryRetrieveInformationModelFind, Verification

from dimse.nodes import HERE

SOP_CLASSES = (Verification, MRImageStorage, StudyRootQueryRetrieveInformationModelFind)
MAX_LENGTH = 16382
_HEAD = struct.Struct(">BxL")


def association_request(called: str = "IOPFL", calling: str = "FUZZER") -> bytes:
    """A whole A-ASSOCIATE-RQ for verification, storage and query: contexts 1, 3 and 5."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = calling, called
    contexts = [build_context(sop_class, ExplicitVRLittleEndian) for sop_class in SOP_CLASSES]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    request.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = MAX_LENGTH, "1.2.3"
    request.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(request)
    return pdu.encode()


def store_request(ds: Dataset, encoded: bytes | None = None) -> list[bytes]:
    """P-DATA PDUs of a C-STORE, its data set as given or encoded anew."""
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    # Of no bytes at all there would be no PDU, and the SCP would wait for one.
    request.DataSet = BytesIO(encode(ds, False, True) if encoded is None else encoded or b"\0\0")
    return _pdus(C_STORE_RQ(), request, 3)


def other_messages() -> list[list[bytes]]:
    """P-DATA PDUs of a C-ECHO and of a C-FIND, and the PDUs of a release and an abort."""
    echo, find, query = C_ECHO(), C_FIND(), Dataset()
    echo.MessageID, echo.AffectedSOPClassUID = 2, Verification
    query.QueryRetrieveLevel, query.PatientName, query.StudyInstanceUID = "STUDY", "*", ""
    find.MessageID, find.Priority, find.AffectedSOPClassUID = 3, 2, SOP_CLASSES[2]
    find.Identifier = BytesIO(encode(query, False, True))
    release, abort = A_RELEASE_RQ(), A_ABORT_RQ()
    release.from_primitive(A_RELEASE())
    primitive = A_ABORT()
    primitive.abort_source = 0
    abort.from_primitive(primitive)
    return [_pdus(C_ECHO_RQ(), echo, 1), _pdus(C_FIND_RQ(), find, 5), [release.encode()], [abort.encode()]]


def _pdus(message, primitive, context_id: int) -> list[bytes]:
    message.primitive_to_message(primitive)
    found = []
    for fragment in message.encode_msg(context_id, MAX_LENGTH):
        pdu = P_DATA_TF()
        pdu.from_primitive(fragment)
        found.append(pdu.encode())
    return found


def damage_conversation(pdus: Sequence[bytes], seed: int) -> list[bytes]:
    """PDUs with something wrong: bytes, lengths, types, order, too many, too few, or something else altogether."""
    random = np.random.default_rng(seed)
    pdus = list(pdus)
    for _ in range(random.integers(1, 4)):
        index = int(random.integers(len(pdus)))
        pdu = pdus[index]
        match int(random.integers(9)):
            case 0:
                pdus[index] = _flip(pdu, random)
            case 1:
                pdus[index] = _flip(pdu[:80], random) + pdu[80:]
            case 2:
                pdus[index] = pdu[: random.integers(len(pdu) + 1)]
            case 3:
                length = int(random.choice([0, 1, 5, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(pdu) - 7, len(pdu) + 3]))
                pdus[index] = pdu[:2] + struct.pack(">L", length) + pdu[6:]
            case 4:
                pdus[index] = bytes([int(random.integers(256))]) + pdu[1:]
            case 5:
                pdus.insert(index, pdu)
            case 6:
                pdus[index] = random.bytes(int(random.integers(1, 300)))
            case 7 if len(pdus) > 1:
                other = int(random.integers(len(pdus)))
                pdus[index], pdus[other] = pdus[other], pdus[index]
            case _:
                place = int(random.integers(len(pdu) + 1))  # an inner length, most likely
                pdus[index] = pdu[:place] + struct.pack(">H", int(random.integers(65536))) + pdu[place + 2 :]
    return pdus


def _flip(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(random.integers(1, 6) if data else 0):
        changed[random.integers(len(changed))] = random.integers(256)
    return bytes(changed)


def converse(port: int, pdus: Sequence[bytes], *, seconds: float) -> bytes:
    """Send PDUs, then nothing more, and return all that comes back until the other side closes.

    What follows the first PDU waits a moment for an answer to it, as it would be refused unread before.

    Raises:
        TimeoutError: it does not close, in time.
    """
    with socket.create_connection((HERE, port)) as connection:
        connection.settimeout(seconds)
        answer = b""
        try:
            for number, pdu in enumerate(pdus):
                connection.sendall(pdu)
                if number == 0:
                    select.select([connection], [], [], 0.2)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        except TimeoutError:
            raise
        except OSError:  # closed by the other side, at whatever moment
            pass
        return answer


class Sender:
    """An association byte by byte, for whole requests with damaged data sets."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HERE, port))
        self._socket.settimeout(30)
        self._socket.sendall(association_request())
        assert self._read_pdu()[0] == 2, "no association"

    def store(self, ds: Dataset, encoded: bytes) -> int:
        """Status of a C-STORE whose data set is what is given."""
        self._socket.sendall(b"".join(store_request(ds, encoded)))
        pdu = self._read_pdu()
        assert pdu[0] == 4, f"the association ended, PDU type {pdu[0]}"
        command = dcmread(BytesIO(pdu[12:]), force=True)
        return int(command[0x0000, 0x0900].value)

    def close(self) -> None:
        """Release the association."""
        self._socket.sendall(other_messages()[2][0])
        self._read_pdu()
        self._socket.close()

    def _read_pdu(self) -> bytes:
        head = self._read(_HEAD.size)
        return head + self._read(_HEAD.unpack(head)[1])

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise ConnectionError("the SCP closed the connection")
            data += part
        return data
