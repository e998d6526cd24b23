"""Routers: what decides how much of each expert a layer takes (IOP-FL, section III-C)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SeriesRouter(nn.Module):
    """Ours: one softmax vector for a whole series.

    Its logits start at zero, that is, exactly at the uniform average of the
    experts. It does not look at features: the experts' agreement over the
    series sets it (`point_at`), and so its layers fold into plain ones.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_experts))

    @torch.no_grad()
    def point_at(self, routing_weights: Tensor | None) -> None:
        """Give these routing weights (E,) from now on; they sum to 1. None = the uniform average."""
        if routing_weights is None:
            self.logits.zero_()
        else:
            self.logits.copy_(routing_weights.log())  # a weight of 0 is a logit of minus infinity

    def forward(self, features: Tensor) -> Tensor:
        """Routing weights (E,), which sum to 1, whatever the features."""
        return self.logits.softmax(0)


class SampleRouter(nn.Module):
    """The published one: pooled features of each sample, two linear layers, dropout, sigmoid.

    Routing weights do not sum to 1; each is near 0.5 before adaptation.

    Attributes:
        noisy: whether dropout is on; as published it is, in adaptation and in prediction alike.
    """

    def __init__(self, in_channels: int, num_experts: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_channels, 2 * in_channels)
        self.output = nn.Linear(2 * in_channels, num_experts)
        self.noisy = False

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, C, *S) to routing weights (B, E)."""
        hidden = self.hidden(features.flatten(2).mean(2))  # (B, 2C)
        return self.output(nn.functional.dropout(hidden, 0.2, training=self.noisy)).sigmoid()
