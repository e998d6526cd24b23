"""The consortium's side of a federation: rounds, then the bank.

A round: broadcast task `train`; collect; refuse what is wrong, by name; average
the rest by sample count (`W^(t+1)` of the paper); persist. At the end: task
`share_personalized` collects P_k of the sites, and the bank is composed. The
same class runs in FLARE's simulator and in production.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.workflows.model_controller import ModelController

from fl_bridge.checking import check_answer, check_update, find_outliers, keep_metrics, plain_line
from fl_bridge.exchange import (
    REASON_HEADER,
    SITS_OUT_HEADER,
    TASK_SHARE,
    TASK_TRAIN,
    complete,
    floating,
    from_params,
    to_params,
)
from fl_bridge.persistor import FederationPersistor, FederationState
from iopfl.core.bank import Model, Role, save_bank
from iopfl.core.errors import IOPFLError, TrainingError, WeightsError
from iopfl.core.order import Order
from iopfl.core.signing import Keyring
from iopfl.core.weights import Weights, average, check_weights

AVERAGED, SHARED, REFUSED, SAT_OUT, FAILED, SILENT = "averaged", "shared", "refused", "sat out", "failed", "silent"
"""What a site did in a round. Refused: by the controller. Failed: by its own word. Silent: no answer in time."""

_DAY = 24 * 3600


@dataclass
class _Answers:
    """Answers to one broadcast: what may be used, and what became of every site."""

    models: dict[str, Weights] = field(default_factory=dict)
    metas: dict[str, dict[str, Any]] = field(default_factory=dict)
    fates: dict[str, dict[str, Any]] = field(default_factory=dict)

    def refuse(self, site: str, reason: str, status: str = REFUSED) -> None:
        self.models.pop(site, None)
        self.fates[site] = {"status": status, "reason": plain_line(reason)}


class RoundController(ModelController):
    """Runs a federation on to a number of rounds, from wherever its state is, and composes the bank."""

    def __init__(
        self,
        rounds: int,
        bank: str,
        keys: str,
        min_sites: int = 2,
        timeout: int = _DAY,
        grace: int = _DAY,
        norm_limit: float = 100.0,
    ) -> None:
        """Args:
        rounds: in all, those already done included.
        bank: folder of the bank to be composed.
        keys: folder of the keys that sign it.
        min_sites: updates that a round needs to count.
        timeout: seconds that a task may take; who is later sat the round out.
        grace: seconds to wait for the others once `min_sites` have answered.
        norm_limit: an update is refused when its norm is more than this many times that of the global
            weights, or the median of the round.
        """
        super().__init__(persistor_id="persistor", ignore_result_error=True, task_check_period=0.2)
        self.rounds = rounds
        self.bank = bank
        self.keys = keys
        self.min_sites = min_sites
        self.timeout = timeout
        self.grace = grace
        self.norm_limit = norm_limit
        self._answers = _Answers()

    def run(self) -> None:
        """The workflow; called by FLARE."""
        state = self._open_state()
        try:
            while state.rounds_done < self.rounds and not self.abort_signal.triggered:
                self._run_round(state)
                state = self._open_state()
            if not self.abort_signal.triggered:
                self._compose_bank(state)
        except (IOPFLError, OSError) as error:
            self._open_state().note_failure(plain_line(error))
            self.panic(str(error))

    def _open_state(self) -> FederationState:
        if not isinstance(self.persistor, FederationPersistor):
            raise TypeError(f"expected a FederationPersistor under the id 'persistor', given {type(self.persistor)}")
        return self.persistor.open_state()

    def _run_round(self, state: FederationState) -> None:
        started = time.monotonic()
        loaded = self.load_model()
        global_weights = from_params(loaded.params, what="global weights")
        order = Order(state.federation, state.rounds_done, state.global_hash)
        answers = self._ask(TASK_TRAIN, state, order, global_weights)
        self._check_updates(answers, order, global_weights)
        sites = [site for site in state.clients.values() if site in answers.models]
        if len(sites) < self.min_sites:
            fates = "; ".join(f"{site} {fate['status']}: {fate['reason']}" for site, fate in answers.fates.items())
            what = f"round {order.round_index}: {len(sites)} usable update(s), {self.min_sites} needed"
            raise TrainingError(f"{what}: {fates or 'no answer'}")
        samples = [answers.metas[site]["samples"] for site in sites]
        aggregate = average([answers.models[site] for site in sites], samples)
        for site in sites:
            meta = answers.metas[site]
            answers.fates[site] = {"status": AVERAGED, "samples": meta["samples"], **keep_metrics(meta)}
        record = {
            "round_index": order.round_index,
            "base_hash": order.base_hash,
            "seconds": round(time.monotonic() - started, 3),
            "sites": answers.fates,
        }
        self.save_model(FLModel(params=to_params(aggregate, integers=True), meta={"record": record}))

    def _check_updates(self, answers: _Answers, order: Order, global_weights: Weights) -> None:
        """Refuse updates that must not be averaged; make local models of the others."""
        reference = floating(global_weights)
        norms: dict[str, float] = {}
        for site, difference in list(answers.models.items()):
            try:
                check_answer(answers.metas[site], order, what="update")
                norms[site] = check_update(difference, reference, norm_limit=self.norm_limit, what="update")
            except WeightsError as error:
                answers.refuse(site, str(error))
        for site, reason in find_outliers(norms, norm_limit=self.norm_limit).items():
            answers.refuse(site, reason)
        for site, difference in answers.models.items():
            local_model = {key: reference[key] + value for key, value in difference.items()}
            answers.models[site] = complete(local_model, global_weights)

    def _compose_bank(self, state: FederationState) -> None:
        """Collect the personalized models and write the bank's next version."""
        global_weights = state.read_global()
        order = Order(state.federation, max(0, state.rounds_done - 1), state.global_hash)
        answers = self._ask(TASK_SHARE, state, order, global_weights)
        reference = floating(global_weights)
        models = []
        for site, weights in list(answers.models.items()):
            meta = answers.metas[site]
            try:
                check_answer(meta, order, what="personalized model")
                check_weights(weights, reference, what="personalized model")
                shift = {key: weights[key] - value for key, value in reference.items()}
                check_update(shift, reference, norm_limit=self.norm_limit, what="personalized model")
            except WeightsError as error:
                answers.refuse(site, str(error))
                continue
            last = meta.get("personalized_round")
            last = last if type(last) is int and 0 <= last <= order.round_index else order.round_index
            figures = {key: value for key, value in keep_metrics(meta).items() if key.startswith("dice")}
            whole = complete(weights, global_weights)
            models.append(Model(site, Role.PERSONALIZED, last, meta["samples"], figures, whole))
            answers.fates[site] = {"status": SHARED, "samples": meta["samples"], **figures}
        everywhere = [model.metrics["dice_global"] for model in models if "dice_global" in model.metrics]
        mean = {"dice": sum(everywhere) / len(everywhere)} if everywhere else {}
        samples = sum(model.samples for model in models)
        models.append(Model("", Role.GLOBAL, order.round_index, samples, mean, global_weights))
        bank = save_bank(
            Path(self.bank), models, task=state.task, federation=state.federation, keys=Keyring(Path(self.keys))
        )
        shared = {"rounds_done": state.rounds_done, "bank_version": bank.manifest.version, "sites": answers.fates}
        state.note_shared(shared)

    def _ask(self, task_name: str, state: FederationState, order: Order, weights: Weights) -> _Answers:
        """Broadcast a task to the sites that are connected, and collect."""
        self._answers = answers = _Answers()
        connected = {client.name for client in self.engine.get_clients()}
        targets = [client for client in state.clients if client in connected]
        data = FLModel(
            params_type=ParamsType.FULL,
            params=to_params(weights, integers=True),
            current_round=order.round_index,
            total_rounds=self.rounds,
            meta=order.to_meta(),
        )
        results = (
            self.broadcast_model(
                task_name=task_name,
                data=data,
                targets=targets,
                min_responses=min(self.min_sites, len(targets)),
                wait_time_after_min_received=self.grace,
                timeout=self.timeout,
            )
            if targets
            else []
        )
        for result in results:
            site = state.clients[result.meta["client_name"]]
            try:
                answers.models[site] = from_params(result.params, what=f"answer to {task_name}")
                answers.metas[site] = dict(result.meta)
            except WeightsError as error:
                answers.refuse(site, str(error))
        # What FLARE noted under client names while answers came in.
        for client, site in state.clients.items():
            if client in answers.fates:
                answers.fates[site] = answers.fates.pop(client)
            elif site not in answers.models and site not in answers.fates:
                answers.refuse(site, "no answer in time" if client in connected else "not connected", SILENT)
        return answers

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        """Note why a site gives no answer; FLARE alone would log the return code and drop the reason."""
        if not is_unknown_task and result.get_return_code() != ReturnCode.OK:
            reason = result.get_header(REASON_HEADER) or result.get_return_code()
            self._answers.refuse(client_name, reason, SAT_OUT if result.get_header(SITS_OUT_HEADER) is True else FAILED)
        return super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)
