"""Errors of ours as MONAI Label's, which its clients show."""

from __future__ import annotations

from iopfl.base.errors import IOPFLError


def as_client_error(error: IOPFLError) -> Exception:
    """An error of ours as MONAI Label's, which its clients show."""
    from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

    return MONAILabelException(MONAILabelError.INVALID_INPUT, str(error))
