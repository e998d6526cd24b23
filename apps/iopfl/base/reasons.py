"""All that a site says to a federation in place of an answer: fixed sentences, as a free one may name a patient.

What an error says beyond that stays in the site's own log.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from iopfl.base import errors

_LOG = "; the site's own log says why"


class Reason(StrEnum):
    """Why a site gives no answer. Numbers are left out too: how few labels there are is the site's to tell."""

    FEW_LABELS = "waiting for labels: it has fewer than the task asks for"
    NO_NEW_LABELS = "waiting for new labels"
    NO_MODEL = "has no personalized model: it trained in no round"
    WITHHELD = "keeps its personalized model, by its own policy"
    NOT_NOW = "shares no other personalized model now, by its own policy"
    NOT_AGREED = "has not agreed to this federation or its task, by its own policy"
    ENOUGH_ROUNDS = "has trained as many rounds as its own policy allows"
    OLD_ROUND = "has trained this round or a later one before"
    BUSY = "a training of its own ran for longer than its patience"
    STOPPED = "its training was stopped at the site"
    SITS_OUT = "takes no part in this round"
    UNREADABLE = "images or labels cannot be read" + _LOG
    WEIGHTS = "cannot use the weights it was sent" + _LOG
    BANK = "refuses the bank it was sent" + _LOG
    SETTINGS = "cannot do what was ordered, or its settings are wrong" + _LOG
    TRAINING = "its training failed" + _LOG
    AWAY = "its label server does not answer"
    REFUSED = "its label server refuses what was ordered" + _LOG
    DISK = "cannot read or write its files" + _LOG
    UNEXPECTED = "an unexpected error" + _LOG

    @property
    def sits_out(self) -> bool:
        """Whether that is no fault."""
        return self in _NO_FAULT

    @classmethod
    def read(cls, text: Any) -> Reason:
        """The reason that somebody sent; `UNEXPECTED` where it is none."""
        try:
            return cls(text)
        except ValueError:
            return cls.UNEXPECTED


_NO_FAULT = frozenset(Reason) - {
    Reason.UNREADABLE,
    Reason.WEIGHTS,
    Reason.BANK,
    Reason.SETTINGS,
    Reason.TRAINING,
    Reason.AWAY,
    Reason.REFUSED,
    Reason.DISK,
    Reason.UNEXPECTED,
}

_BY_KIND: tuple[tuple[type[Exception], Reason], ...] = (
    (errors.TooFewLabelsError, Reason.FEW_LABELS),
    (errors.SitsOutError, Reason.SITS_OUT),
    (errors.SeriesError, Reason.UNREADABLE),
    (errors.DatasetError, Reason.UNREADABLE),
    (errors.PACSError, Reason.UNREADABLE),
    (errors.WeightsError, Reason.WEIGHTS),
    (errors.BankError, Reason.BANK),
    (errors.ConfigError, Reason.SETTINGS),
    (errors.TrainingError, Reason.TRAINING),
    (errors.StorageError, Reason.DISK),
    (OSError, Reason.DISK),
)


def find_reason(error: Exception) -> Reason:
    """What may be said of an error: the reason it carries, or that of its kind."""
    if isinstance(error, errors.IOPFLError) and error.reason:
        return Reason(error.reason)
    return next((reason for kind, reason in _BY_KIND if isinstance(error, kind)), Reason.UNEXPECTED)
