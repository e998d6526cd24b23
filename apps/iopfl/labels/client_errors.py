"""How our errors reach clients: MONAI Label tells them the text of its own exceptions alone."""

from __future__ import annotations

from iopfl.base.errors import IOPFLError


def as_client_error(error: IOPFLError) -> Exception:
    """MONAI Label's exception with the text of one of our errors."""
    from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

    return MONAILabelException(MONAILabelError.INVALID_INPUT, str(error))
