"""The kinds of objects that can be sent of one mask, by the names that a rule or a setting calls them."""

from __future__ import annotations

from collections.abc import Sequence

from iopfl.base.errors import ConfigError

SEGMENTATIONS = ("seg", "label_map")
DISAGREEMENT = "disagreement"
KINDS = (*SEGMENTATIONS, "report", "captures", "structures", DISAGREEMENT)
"""What may be asked for; the first is what comes unasked."""


def check_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds, each once, in the order of `KINDS`.

    Raises:
        ConfigError: one is unknown, both segmentations are asked for, or a report has none to refer to.
    """
    unknown = [str(kind) for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ConfigError(f"expected results among {', '.join(KINDS)}, given {', '.join(unknown) or 'none'}")
    segmentations = [kind for kind in SEGMENTATIONS if kind in kinds]
    if len(segmentations) != 1:
        raise ConfigError(f"expected one of {' or '.join(SEGMENTATIONS)} among the results, given {', '.join(kinds)}")
    return tuple(kind for kind in KINDS if kind in kinds)
