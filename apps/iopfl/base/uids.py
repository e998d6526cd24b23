"""What is taken for a DICOM UID, everywhere."""

from __future__ import annotations

import re

PATTERN = r"(?=[0-9.]{1,64}(?![0-9.]))[0-9]+(?:\.[0-9]+)*"
"""Numbers with dots between them, 64 characters at most (PS3.5, section 9.1); leading zeros are no UID's, but are sent.
Such a value leads to no other folder or address."""

_UID = re.compile(PATTERN)


def is_uid(value: object) -> bool:
    """Whether a value is a UID, hence safe in a message, as a file's name and in an address.

    >>> is_uid("1.2.3"), is_uid("../1.2.3"), is_uid("1..2"), is_uid(None), is_uid("1" * 65)
    (True, False, False, False, False)
    """
    return _UID.fullmatch(str(value or "")) is not None
