"""Codes of what a segment is, whichever of SNOMED's schemes they are written in, and names, however they are typed."""

from __future__ import annotations

import unicodedata

_SNOMED = ("SCT", "SRT", "SNM3", "99SDM", "99SNM3")
_GENERAL = ("85756007", "113343008", "123037004", "91723000")
"""Tissue, organ, and anatomical structure: of which kind is said by where it is."""


def fold_name(name: str) -> str:
    """A name as it is compared: case, blanks around it, and how its letters are composed do not matter.

    >>> fold_name(" Gro\u0308\u00dfe"), fold_name("disc\u00a0rim")
    ('gr\u00f6sse', 'disc rim')
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).strip()


def normalize_code(value: str, scheme: str) -> tuple[str, str]:
    """A code as SNOMED CT has it, where it is one of SNOMED's older ones (PS3.16, 8.1).

    >>> normalize_code("T-92000", "SRT")
    ('41216001', 'SCT')
    """
    if scheme.upper() not in _SNOMED:
        return value, scheme
    from pydicom.sr import _snomed_dict

    return _snomed_dict.mapping["SRT"].get(value, value), "SCT"


def is_general(value: str, scheme: str) -> bool:
    """Whether a code leaves to the anatomic region what a segment is: a lesion of the prostate is not the prostate.

    >>> is_general("T-D0050", "SRT"), is_general("M-01100", "SRT")
    (True, False)
    """
    code, known = normalize_code(value, scheme)
    return known == "SCT" and code in _GENERAL
