"""Values of a data set in messages: only what they should be, since a broken length may bring in the patient's name."""

from __future__ import annotations

import re

from pydicom.uid import UID

from iopfl.base.uids import is_uid

AT_SOURCE = "have that put right where it comes from"
"""What to do about a header that is wrong: to send the same again does not help."""

_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")
_LONGEST = 64


def show_uid(value: object) -> str:
    """A UID for a message.

    >>> show_uid("1.2.840.10008.1.1"), show_uid("1.2 Doe^Jane"), show_uid(None)
    ('1.2.840.10008.1.1', 'an invalid UID', 'no UID')
    """
    text = str(value or "")
    return (text if is_uid(text) else "an invalid UID") if text else "no UID"


def show_syntax(value: object) -> str:
    """A transfer syntax for a message: by its name and UID.

    >>> show_syntax("1.2.840.10008.1.2.4.100"), show_syntax("1.2.3")
    ('MPEG2 Main Profile / Main Level (1.2.840.10008.1.2.4.100)', 'an unknown one (1.2.3)')
    """
    uid = UID(show_uid(value))
    return f"{uid.name if uid.name != uid else 'an unknown one'} ({uid})" if is_uid(uid) else uid


def show_code(value: object) -> str:
    """A code string (VR CS) for a message.

    >>> show_code("MONOCHROME2"), show_code("Doe^Jane"), show_code("")
    ('MONOCHROME2', 'an invalid value', 'no value')
    """
    text = str(value or "")
    return (text if _CODE.fullmatch(text) else "an invalid value") if text else "no value"


def show_label(value: str) -> str:
    """A label that somebody gave, for a message.

    >>> show_label("anterior"), show_label("a" + chr(0) + "Doe^Jane")
    ("'anterior'", 'an invalid label')
    """
    return repr(value) if value.isprintable() and len(value) <= _LONGEST else "an invalid label"
