"""Storing an instance (STOW-RS, PS3.18 10.5): what a server's answer says of it, where it says something."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from io import BytesIO

from pydicom import Dataset, dcmwrite
from pydicom.uid import UID

from iopfl.base.errors import NotTakenError, PACSAwayError, PACSError
from iopfl.dicomweb.answers import Item, find_items, first_value
from iopfl.dicomweb.asking import SIGN_IN, Asking, RefusedError
from iopfl.dicomweb.retrieving import SOP_INSTANCE

logger = logging.getLogger(__name__)

_WHAT = "storing"
_STORED, _FAILED = "00081199", "00081198"
_UID, _REASON, _WARNING = "00081155", "00081197", "00081196"
_DUPLICATE = 0x0111
"""Failure reason: the instance is there already (PS3.18, 10.5.3.2)."""
_ACCEPTED = 202  # which promises nothing
_NO_SERVICE = (405, 415, 501)
"""Statuses of a server that stores nothing, or not what STOW-RS sends."""
_NO_SUCH_CLASS, _INVALID = 0x0122, 0x0117
_NO_ROOM, _NOT_ITS_CLASS, _NOT_UNDERSTOOD = 0xA7, 0xA9, 0xC
_MEANINGS = {
    0x0110: "processing failure",
    _INVALID: "invalid instance",
    _NO_SUCH_CLASS: "its SOP class is not taken",
    0x0124: "not authorized",
    0xC122: "its transfer syntax is not taken",
}


def store(asking: Asking, ds: Dataset, *, again: bool) -> str:
    """Store an instance, as `DICOMweb.store` says: the UID that it is stored under."""
    uid, name = str(ds.SOPInstanceUID), asking.endpoint.name
    if again and find(asking, ds):
        return uid
    try:
        answer = asking.post(_WHAT, "/studies", *_to_body(ds))
    except RefusedError as error:
        if error.status in SIGN_IN:
            raise
        if any(_code(item, _REASON) == _DUPLICATE for item in _items_of(error.items, _FAILED)) or find(asking, ds):
            return uid  # it was there
        if error.status in _NO_SERVICE:
            line = f"takes nothing by STOW-RS: it answers with status {error.status}"
            raise NotTakenError(f"{name} {line}", line=line) from error
        reasons = _failures(error.items)
        said = f"{error}{f' (failure reason {_list_failures(reasons)})' if reasons else ''}"
        raise _refusal(name, said, ds, reasons) from error
    stored, failed = _items_of(answer.items, _STORED), _items_of(answer.items, _FAILED)
    for item in stored:
        if _code(item, _WARNING):
            logger.warning("%s stored %s with the warning 0x%04X", name, uid, _code(item, _WARNING))
    uids = [str(first_value(item, _UID)).strip() for item in stored]
    if uid in uids:
        return uid
    if len(uids) == 1 and not failed:
        logger.warning("%s stored %s under another SOP Instance UID, %s", name, uid, uids[0])
        return uids[0]
    says_nothing = answer.is_dicom and not failed and answer.status != _ACCEPTED
    if says_nothing or any(_code(item, _REASON) == _DUPLICATE for item in failed):
        return uid
    is_there = find(asking, ds)
    if is_there or (is_there is None and not failed and answer.is_dicom):
        return uid
    reasons = _failures(answer.items)
    said = f"failure reason {_list_failures(reasons)}" if reasons else "without a reason"
    raise _refusal(name, f"{name} did not store {uid} ({said}): see its log", ds, reasons)


def _refusal(name: str, said: str, ds: Dataset, reasons: list[int]) -> PACSError:
    """What to raise of an instance that was not stored."""
    if not reasons or not all(map(is_final, reasons)):
        return PACSError(said)
    kind = UID(ds.SOPClassUID).name
    line = f"takes no {kind} (failure reason {_list_failures(reasons)})" if _NO_SUCH_CLASS in reasons else ""
    return NotTakenError(f"{name} {line}" if line else said, line=line)


def is_final(reason: int) -> bool:
    """Whether the same instance would fail for the same reason again (PS3.4 B.2.3, PS3.18 I.2.2)."""
    return reason in (_NO_SUCH_CLASS, _INVALID) or reason >> 8 == _NOT_ITS_CLASS or reason >> 12 == _NOT_UNDERSTOOD


def _list_failures(reasons: Sequence[int]) -> str:
    """By number and meaning."""
    return ", ".join(f"{reason}{f', {meaning}' if (meaning := explain_failure(reason)) else ''}" for reason in reasons)


def explain_failure(reason: int) -> str:
    """A failure reason's meaning; "" = it is not known."""
    families = {_NO_ROOM: "out of resources", _NOT_ITS_CLASS: "it does not match its SOP class"}
    if reason >> 8 in families:
        return families[reason >> 8]
    return _MEANINGS.get(reason) or ("it is not understood" if reason >> 12 == _NOT_UNDERSTOOD else "")


def find(asking: Asking, ds: Dataset) -> bool | None:
    """Whether a server has an instance; None = it cannot be asked.

    Raises:
        PACSAwayError: it does not answer.
    """
    uid = str(ds.SOPInstanceUID)
    study, series = f"/studies/{ds.StudyInstanceUID}", f"/series/{ds.SeriesInstanceUID}"
    for path, filters in ((f"{study}{series}/instances", {}), ("/instances", {"SOPInstanceUID": uid})):
        try:
            found = asking.search("a search for an instance", path, filters)
        except PACSAwayError:
            raise
        except PACSError:  # it has no such search, or nothing of that series
            continue
        return any(str(first_value(item, SOP_INSTANCE)).strip() == uid for item in found)
    return None


def _to_body(ds: Dataset) -> tuple[bytes, str]:
    """One part, and its type; the length is known beforehand, which every server understands."""
    boundary = uuid.uuid4().hex
    with BytesIO() as buffer:
        buffer.write(f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode())
        with BytesIO() as part:
            dcmwrite(part, ds, enforce_file_format=True)
            buffer.write(part.getvalue())
        buffer.write(f"\r\n--{boundary}--".encode())
        return buffer.getvalue(), f'multipart/related; type="application/dicom"; boundary="{boundary}"'


def _items_of(items: list[Item], tag: str) -> list[Item]:
    return [item for answer in items for item in find_items(answer, tag)]


def _code(item: Item, tag: str) -> int:
    try:
        return int(first_value(item, tag) or 0)
    except (TypeError, ValueError):
        return 0


def _failures(items: list[Item]) -> list[int]:
    """Failure reasons of what was not stored."""
    codes = {_code(item, _REASON) for item in _items_of(items, _FAILED)}
    return sorted(code for code in codes if code)
