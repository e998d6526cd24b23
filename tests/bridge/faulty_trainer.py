"""A trainer that sends what must be refused; the simulator's client processes import it by name."""

import dataclasses

import torch

from fl_bridge.trainer import InProcessTrainer


class FaultyTrainer(InProcessTrainer):
    """Sends NaN in round 0, weights a thousand times too large in round 1, and raises afterwards."""

    def __init__(self, site_folder: str, task: str, state_folder: str) -> None:
        super().__init__(site_folder, task, state_folder)

    def train(self, global_weights, order, *, cancelled=lambda: False):
        update = super().train(global_weights, order, cancelled=cancelled)
        if order.round_index > 1:
            raise RuntimeError("patient 4711's image fell over")
        factor = (torch.nan, 1000.0)[order.round_index]
        weights = {key: value * factor if value.is_floating_point() else value for key, value in update.weights.items()}
        return dataclasses.replace(update, weights=weights)
