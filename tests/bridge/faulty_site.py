"""A site that sends what must be refused; the simulator's client processes import both classes by name."""

import numpy as np
from nvflare.apis.filter import Filter

from fl_bridge.trainer import InProcessTrainer

FAULTS = ("NaN", "thousandfold", "shape", "missing", "stale", "boast", "raises")
"""What is wrong in round 0, 1, ..."""


class FaultyTrainer(InProcessTrainer):
    """Raises in the last round."""

    def __init__(self, site_folder: str, task: str, state_folder: str) -> None:
        super().__init__(site_folder, task, state_folder)

    def train(self, global_weights, order, *, cancelled=lambda: False):
        if FAULTS[order.round_index] == "raises":
            raise RuntimeError("patient 4711's image fell over")
        return super().train(global_weights, order, cancelled=cancelled)


class FaultyFilter(Filter):
    """Spoils the updates of one client on their way out, each round in another way."""

    def __init__(self, client: str) -> None:
        super().__init__()
        self.client = client

    def process(self, shareable, fl_ctx):
        body = shareable.get("DXO")
        if fl_ctx.get_identity_name() == self.client and body and "personalized_round" not in body["meta"]:
            params, meta = body["data"], body["meta"]
            key = next(name for name, value in params.items() if value.ndim > 1)
            match FAULTS[meta["round_index"]]:
                case "NaN":
                    params[key] = params[key] * np.float32(np.nan)
                case "thousandfold":
                    body["data"] = {name: value * np.float32(1000) + 1 for name, value in params.items()}
                case "shape":
                    params[key] = params[key][:1]
                case "missing":
                    del params[key]
                case "stale":
                    meta["round_index"] -= 1
                case "boast":
                    meta["samples"] = 10_000_000
        return shareable
