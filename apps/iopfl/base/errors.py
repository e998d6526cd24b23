"""Every error that iopfl raises on purpose.

A message has three parts: what was expected, what was given, what to do. The
edges translate: the command line to one line and exit status 2, the label
server to an HTTP status, the bridge to a refused or failed task.
"""


class IOPFLError(Exception):
    """Base of all of them.

    Attributes:
        reason: one of `reasons.Reason`, where a federation is to be told more than the error's kind.
    """

    def __init__(self, *args: object, reason: str = "") -> None:
        super().__init__(*args)
        self.reason = reason


class ConfigError(IOPFLError):
    """A task, a setting or an argument is wrong."""


class LostKeyError(ConfigError):
    """A key that was made here is gone, cut short, or another one."""


class AccessError(ConfigError):
    """What says who may sign in cannot be read: for the administrator's eyes, not for those of whoever asks."""


class DatasetError(IOPFLError):
    """A site folder, a download or a split is not as documented."""


class SeriesError(IOPFLError):
    """An image or a label cannot be read or does not fit its task."""


class WeightsError(IOPFLError):
    """Weights are not those of the network: keys, shapes, types or values."""


class BankError(IOPFLError):
    """A bank cannot be opened, verified or written."""


class BankMismatchError(BankError):
    """A bank is whole, but not for this task or network."""


class BankTrustError(BankError):
    """A bank is unsigned, altered since it was signed, or signed by somebody unknown."""


class TrainingError(IOPFLError):
    """Training cannot start or did not converge to finite weights."""


class TooFewLabelsError(TrainingError):
    """There are fewer labels than the task asks for."""


class SitsOutError(IOPFLError):
    """The site takes no part in this round, and that is no fault."""


class AdaptationError(IOPFLError):
    """Test-time adaptation cannot run on this series."""


class CancelledError(IOPFLError):
    """The caller asked to stop."""


class AuditError(IOPFLError):
    """The audit log was altered."""


class LabelVersionError(IOPFLError):
    """A label's history has no such version, or nothing to undo."""


class StorageError(IOPFLError):
    """The disk is full, or not to be written to."""


class ImageExistsError(IOPFLError):
    """An image of this id is there already, and stays as it is."""


class FederationsError(IOPFLError):
    """A federation that this site takes no part in, or one too many."""


class BusyError(IOPFLError):
    """Too many ask for the same at once: not now, but later."""


class LeaseError(IOPFLError):
    """Every image that is left is lent to somebody else."""


class PACSError(IOPFLError):
    """The PACS refuses, or answers something else than was asked."""


class PACSAwayError(PACSError):
    """The PACS does not answer."""


class NotTakenError(PACSError):
    """The PACS does not take this object, however often it is offered.

    Attributes:
        line: about the PACS, for its administrator, where it takes none of this kind; else "".
    """

    def __init__(self, message: str, *, line: str = "") -> None:
        super().__init__(message)
        self.line = line


class AssociationError(IOPFLError):
    """A DICOM peer cannot be reached, refuses the association, or does not answer within it."""
