"""FedAvg, and what never goes back into its training: IOP-FL's accumulation and Ditto's own models.

FedAvg: McMahan et al., AISTATS 2017. Accumulation: Jiang et al., TMI 2023, III-B, `personalized/SITE`.
Ditto: Li et al., ICML 2021, `own/SITE`. All three share the global trajectory, so one run gives them all.
"""

from __future__ import annotations

from federation import Federation, Models
from iopfl.core.personalization import PersonalizedModel
from iopfl.core.weights import Weights, average

SETTINGS = {"alpha": 0.1, "ditto_weight": 0.1}


def train_round(federation: Federation, models: Models, round_index: int) -> None:
    """FedAvg's round, and each site's two models beside it."""
    before = models["global"]
    train_global(federation, models, round_index)
    for site in federation.sites:
        local, last = models[f"local/{site}"], models.get(f"personalized/{site}")
        models[f"personalized/{site}"] = accumulate(last, local, round_index, SETTINGS["alpha"])
        models[f"own/{site}"] = federation.train(
            site,
            models.get(f"own/{site}", before),
            round_index,
            proximal_weight=SETTINGS["ditto_weight"],
            proximal_to=before,
        )


def train_global(federation: Federation, models: Models, round_index: int, **options: float) -> None:
    """All sites from the global weights, and the average of what they give."""
    for site in federation.sites:
        models[f"local/{site}"] = federation.train(site, models["global"], round_index, **options)
    models["global"] = average([models[f"local/{site}"] for site in federation.sites], federation.shares)


def accumulate(last: Weights | None, local: Weights, round_index: int, alpha: float) -> Weights:
    """P_k after one more round."""
    if last is None:
        return PersonalizedModel.start(local, round_index=round_index).weights
    return PersonalizedModel(last, round_index - 1).accumulate(local, round_index=round_index, alpha=alpha).weights
