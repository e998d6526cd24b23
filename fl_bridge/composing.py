"""The bank of a federation: the global model, and of each site the personalized one that it shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fl_bridge.persistor import FederationState
from fl_bridge.spool import Spool
from iopfl.base.errors import BankError
from iopfl.core.bank.bank import Model, ModelBank, Role, save_bank
from iopfl.core.bank.signing import Keyring
from iopfl.core.order import Order
from iopfl.core.weights import complete

SHARED, KEPT = "shared", "kept"


@dataclass(frozen=True)
class Composed:
    """A bank that was written, and what each site has in it."""

    bank: ModelBank
    sites: Mapping[str, Mapping[str, Any]]


def compose_bank(
    folder: Path,
    state: FederationState,
    order: Order,
    spool: Spool,
    fates: Mapping[str, Mapping[str, Any]],
    *,
    withheld: set[str],
    keys: Keyring,
) -> Composed:
    """Write the bank's next version.

    A site that gave no answer this time (absent, or not due by its policy)
    keeps the model it shared before; one that withholds its model has none.

    Args:
        folder: the bank's folder.
        state: with the global weights.
        order: that asked for the models.
        spool: the differences of personalized models to the global weights that came in.
        fates: what became of the other sites.
        withheld: sites whose policy shares no model.
        keys: sign the bank.
    """
    global_weights = state.read_global()
    models, sites = [], {site: dict(fate) for site, fate in fates.items()}
    before = _read_before(folder, state.federation)
    for site in state.clients.values():
        about = spool.sites.get(site)
        if about is not None:
            figures = {key: value for key, value in about["metrics"].items() if key.startswith("dice")}
            weights = complete(_add(global_weights, spool.read_all(site)), global_weights)
            models.append(
                Model(site, Role.PERSONALIZED, about["personalized_round"], about["samples"], figures, weights)
            )
            sites[site] = {"status": SHARED, "samples": about["samples"], **figures}
        elif site in before and site not in withheld:
            models.append(before[site])
            sites[site] = {**sites.get(site, {}), "status": KEPT, "round": before[site].round_index + 1}
    everywhere = [model.metrics["dice_global"] for model in models if "dice_global" in model.metrics]
    mean = {"dice": sum(everywhere) / len(everywhere)} if everywhere else {}
    samples = sum(model.samples for model in models)
    models.append(Model("", Role.GLOBAL, order.round_index, samples, mean, global_weights))
    bank = save_bank(folder, models, task=state.task, federation=state.federation, keys=keys)
    return Composed(bank, sites)


def _read_before(folder: Path, federation: str) -> dict[str, Model]:
    """The personalized models of the bank's last version, where it is of this federation."""
    try:
        bank = ModelBank.open(folder)
    except BankError:
        return {}
    if bank.manifest.federation != federation:
        return {}
    return {
        entry.site: Model(entry.site, entry.role, entry.round_index, entry.samples, entry.metrics, weights)
        for entry, weights in zip(bank.manifest.entries, bank.experts, strict=True)
        if entry.role == Role.PERSONALIZED
    }


def _add(reference: Mapping[str, Tensor], difference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: reference[key] + value for key, value in difference.items()}
