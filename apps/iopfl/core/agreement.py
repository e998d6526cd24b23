"""Agreement of the experts: a score without labels, for choosing and for the quality score.

How far the bank's experts, each on its own, give the mask that the answer
gives. Of masks rather than probabilities: soft Dice is near 1 wherever the
experts are equally sure, right or wrong. It is evidence, not proof: experts
that fail in the same way agree.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mask_agreement(first: Tensor, second: Tensor) -> float:
    """Dice of two foregrounds over a whole series, label by label; 0 where both are empty.

    An empty answer that all agree on is no evidence of a good one, hence 0.

    Args:
        first: class probabilities (N, K, *S).
        second: the same.
    """
    a, b = first.argmax(1), second.argmax(1)  # (N, *S)
    size = ((a > 0).sum() + (b > 0).sum()).item()
    return 2 * ((a == b) & (a > 0)).sum().item() / size if size else 0.0


def agreements(experts: Tensor, answer: Tensor) -> Tensor:
    """Agreement of each expert with the answer, (E,), 0 to 1.

    Args:
        experts: (E, N, K, *S) class probabilities.
        answer: (N, K, *S).
    """
    return torch.tensor([mask_agreement(expert, answer) for expert in experts])


def expert_agreement(experts: Tensor, answer: Tensor) -> float:
    """Mean agreement of the experts with the answer: the quality score. Shapes as in `agreements`."""
    return float(agreements(experts, answer).mean())


def hide(answer: Tensor, padding: Tensor | None) -> Tensor:
    """Class probabilities (N, K, *S) with background for certain where instances (N, *S) are padding; None = nowhere.

    What a model finds where there is no image is no evidence.
    """
    if padding is None:
        return answer
    hidden = answer.masked_fill(padding[:, None].to(answer.device), 0.0)
    hidden[:, 0].masked_fill_(padding.to(answer.device), 1.0)
    return hidden
