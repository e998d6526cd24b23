"""What segmenting an image gives: a mask, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monai.data import MetaTensor
from torch import Tensor

from iopfl.core.measuring import Measurement


@dataclass(frozen=True)
class Answer:
    """Where a mask comes from; `to_params` is what clients are shown.

    Attributes:
        task: name.
        bank: version and content id of the bank.
        model: kind that answered.
        seconds: from file to mask.
        routing_weights: expert name -> share of it in the answer, summing to 1; empty where one model answered.
        quality: agreement of the experts with the answer, 0 to 1; None if not asked for.
        share: the share of the series' own normalization statistics, for `routed`.
        zooms: magnifications that the answer averages over, for `routed`.
        shortened: what `routed` left out to stay within the time budget, in words.
        reason: why this model answered, where there was a choice.
        metrics: validation Dice behind that choice.
        measurements: size of each label.
        left_out: instances of the series that are not in the image, and why.
    """

    task: str
    bank: str
    model: str
    seconds: float
    routing_weights: Mapping[str, float] = field(default_factory=dict)
    quality: float | None = None
    share: float | None = None
    zooms: tuple[float, ...] = ()
    shortened: str = ""
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    measurements: Sequence[Measurement] = ()
    left_out: tuple[str, ...] = ()

    def to_params(self) -> dict[str, Any]:
        """As plain values, without what does not apply."""
        values = {key: value for key, value in vars(self).items() if value not in (None, "", {}, ())}
        for key in ("routing_weights", "metrics"):
            if key in values:
                values[key] = {name: round(float(number), 4) for name, number in values[key].items()}
        if self.measurements:
            values["measurements"] = {size.label: size.to_params() for size in self.measurements}
        values["seconds"] = round(self.seconds, 3)
        return values


@dataclass(frozen=True)
class Segmentation:
    """A mask on the source's grid.

    Attributes:
        mask: the task's label values, (X, Y, Z) uint8; Z = 1 for a picture.
        image: the source as read, (C, X, Y, Z), with its affine.
        answer: where the mask comes from.
        disagreement: percent of the experts that give another label than most, (X, Y, Z) uint8; None if not asked for.
    """

    mask: Tensor
    image: MetaTensor
    answer: Answer
    disagreement: Tensor | None = None
