"""The consortium's side of a federation: rounds, then the bank.

A round: broadcast task `train`; check each answer as it comes and refuse what
is wrong, by name; aggregate the rest (`W^(t+1)` of the paper); persist. Every
so many rounds, and at the end: task `share_personalized` collects P_k of the
sites, the bank is composed, and task `publish_bank` brings it to them. The
same class runs in FLARE's simulator and in production.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.workflows.model_controller import ModelController

from fl_bridge.aggregation import AVERAGE, aggregate, limit_weights
from fl_bridge.checking import find_outliers, norm_of, plain_line, read_answer
from fl_bridge.composing import compose_bank
from fl_bridge.exchange import (
    BANK_PARAM,
    REASON_HEADER,
    TASK_PUBLISH,
    TASK_SHARE,
    TASK_TRAIN,
    from_params,
    to_params,
)
from fl_bridge.metrics import MetricsReceiver
from fl_bridge.persistor import FederationPersistor, FederationState
from fl_bridge.spool import Spool
from iopfl.base.errors import IOPFLError, TrainingError, WeightsError
from iopfl.base.files import Scratch
from iopfl.base.locks import try_hold
from iopfl.base.reasons import Reason
from iopfl.core.bank.exchange import export_bank
from iopfl.core.bank.signing import Keyring
from iopfl.core.order import Order
from iopfl.core.weights import Weights, floating

AVERAGED, REFUSED, SAT_OUT, FAILED, SILENT = "averaged", "refused", "sat out", "failed", "silent"
"""What a site did in a round. Refused: by the controller. Failed: by its own word. Silent: no answer in time."""

_DAY = 24 * 3600


@dataclass
class _Asked:
    """One broadcast: what to do with an answer, and what became of the sites that gave none."""

    accept: Callable[[str, FLModel], None]
    fates: dict[str, dict[str, Any]] = field(default_factory=dict)
    withheld: set[str] = field(default_factory=set)
    heard: set[str] = field(default_factory=set)
    failure: OSError | None = None
    """Why an answer could not be kept: no fault of its site."""

    def refuse(self, site: str, reason: str, status: str = REFUSED) -> None:
        self.fates[site] = {"status": status, "reason": plain_line(reason)}


class RoundController(ModelController):
    """Runs a federation on to a number of rounds, from wherever its state is, and composes the bank."""

    def __init__(
        self,
        rounds: int,
        bank: str,
        keys: str,
        total_rounds: int = 0,
        share_every: int = 0,
        publish: bool = False,
        min_sites: int = 2,
        timeout: int = _DAY,
        grace: int = _DAY,
        norm_limit: float = 100.0,
        aggregation: str = AVERAGE,
        weight_limit: float = 0.5,
    ) -> None:
        """Args:
        rounds: to be done when this job ends, those already done included.
        bank: folder of the bank to be composed.
        keys: folder of the keys that sign it.
        total_rounds: rounds of the whole federation, after which the bank is composed in any case; 0 = `rounds`.
        share_every: rounds from one bank to the next; 0 = at the end alone.
        publish: bring each bank to the sites.
        min_sites: updates that a round needs to count.
        timeout: seconds that a task may take; who is later sat the round out.
        grace: seconds to wait for the others once `min_sites` have answered.
        norm_limit: an update is refused when its norm is more than this many times that of the global
            weights, or the median of the round.
        aggregation: one of `aggregation.AGGREGATIONS`.
        weight_limit: largest weight of one site in the average; see `aggregation.limit_weights`.
        """
        super().__init__(persistor_id="persistor", ignore_result_error=True, task_check_period=0.2)
        self.rounds = rounds
        self.bank = bank
        self.keys = keys
        self.total_rounds = total_rounds
        self.share_every = share_every
        self.publish = publish
        self.min_sites = min_sites
        self.timeout = timeout
        self.grace = grace
        self.norm_limit = norm_limit
        self.aggregation = aggregation
        self.weight_limit = weight_limit
        self._asked = _Asked(lambda site, model: None)
        self._clients: Mapping[str, str] = {}

    def run(self) -> None:
        """The workflow; called by FLARE."""
        state = self._open_state()
        with try_hold(state.folder / "controller.lock") as lock:
            if lock is None:  # of a job that is still about: two would each count the same round
                self.panic("another job of this federation is running")
                return
            try:
                self._run_rounds(state)
            except (IOPFLError, OSError) as error:
                with contextlib.suppress(OSError):  # a full disk may be the failure
                    self._open_state().note_failure(plain_line(error))
                self.panic(str(error))

    def _run_rounds(self, state: FederationState) -> None:
        self._clients = state.clients
        while not self.abort_signal.triggered:
            if self._is_bank_due(state):
                self._make_bank(state)
            elif state.rounds_done < self.rounds:
                self._run_round(state)
            else:
                return
            state = self._open_state()

    def _is_bank_due(self, state: FederationState) -> bool:
        done = state.rounds_done
        due = done >= (self.total_rounds or self.rounds) or (self.share_every and done and not done % self.share_every)
        return bool(due) and (state.shared or {}).get("rounds_done") != done

    def _open_state(self) -> FederationState:
        if not isinstance(self.persistor, FederationPersistor):
            raise TypeError(f"expected a FederationPersistor under the id 'persistor', given {type(self.persistor)}")
        return self.persistor.open_state()

    def _run_round(self, state: FederationState) -> None:
        started = time.monotonic()
        global_weights = from_params(self.load_model().params, what="global weights")
        reference = floating(global_weights)
        order = Order(state.federation, state.rounds_done, state.global_hash)
        spool = Spool(state.folder / "updates", order)
        asked = self._collect(TASK_TRAIN, order, global_weights, spool, what="update")
        norms = {site: about["norm"] for site, about in spool.sites.items()}
        for site, reason in find_outliers(norms, norm_limit=self.norm_limit).items():
            spool.remove(site)
            asked.refuse(site, reason)
        samples = {site: spool.sites[site]["samples"] for site in self._clients.values() if site in spool.sites}
        if len(samples) < self.min_sites:
            fates = "; ".join(f"{site} {fate['status']}: {fate['reason']}" for site, fate in asked.fates.items())
            what = f"round {order.round_index}: {len(samples)} usable update(s), {self.min_sites} needed"
            raise TrainingError(f"{what}: {fates or 'no answer'}")
        weights = limit_weights(samples, limit=self.weight_limit)
        for site in samples:
            about = spool.sites[site]
            fate = {"status": AVERAGED, "samples": about["samples"], **about["metrics"]}
            asked.fates[site] = {**fate, **self._describe_weight(site, weights, samples)}
        combined = aggregate(global_weights, weights, spool.read, how=self.aggregation)
        record = {
            "round_index": order.round_index,
            "base_hash": order.base_hash,
            "seconds": round(time.monotonic() - started, 3),
            "change": round(norm_of({key: combined[key] - value for key, value in reference.items()}), 6),
            "sites": asked.fates,
        }
        self.save_model(FLModel(params=to_params(combined, integers=True), meta={"record": record}))
        spool.clear()
        metrics = self.engine.get_component("metrics")
        if isinstance(metrics, MetricsReceiver):
            for client, site in self._clients.items():
                metrics.record(client, order.round_index, asked.fates[site], self.fl_ctx)

    def _describe_weight(self, site: str, weights: Mapping[str, float], samples: Mapping[str, int]) -> dict[str, float]:
        """A site's weight in the average, and what it would be by its count where that is more than its limit."""
        if self.aggregation != AVERAGE:
            return {}
        weight, claimed = weights[site], samples[site] / sum(samples.values())
        described = {"weight": round(weight, 4)}
        return {**described, "capped_from": round(claimed, 4)} if claimed - weight > 1e-9 else described

    def _make_bank(self, state: FederationState) -> None:
        """Collect the personalized models, write the bank's next version, and bring it to the sites."""
        global_weights = state.read_global()
        order = Order(state.federation, max(0, state.rounds_done - 1), state.global_hash)
        spool = Spool(state.folder / "shared", order)
        asked = self._collect(TASK_SHARE, order, global_weights, spool, what="personalized model")
        composed = compose_bank(
            Path(self.bank),
            state,
            order,
            spool,
            asked.fates,
            withheld=asked.withheld,
            keys=Keyring(Path(self.keys)),
        )
        shared = {
            "rounds_done": state.rounds_done,
            "bank_version": composed.bank.manifest.version,
            "sites": composed.sites,
        }
        if self.publish and not self.abort_signal.triggered:
            shared["published"] = self._publish(order)
        state.note_shared(shared)
        spool.clear()

    def _collect(self, task_name: str, order: Order, global_weights: Weights, spool: Spool, *, what: str) -> _Asked:
        """Have every site's difference to the global weights in the spool, or a word on why not."""
        reference = floating(global_weights)

        def accept(site: str, model: FLModel) -> None:
            try:
                difference, about = read_answer(model, order, reference, norm_limit=self.norm_limit, what=what)
            except WeightsError as error:
                asked.refuse(site, str(error))
                return
            try:
                spool.add(site, difference, about)
            except OSError as error:
                asked.failure = error  # raised below: FLARE would only log it, in the thread that received the answer

        asked = _Asked(accept, heard=set(spool.sites))
        data = FLModel(
            params_type=ParamsType.FULL,
            params=to_params(global_weights, integers=False),
            current_round=order.round_index,
            total_rounds=self.total_rounds or self.rounds,
            meta=order.to_meta(),
        )
        self._ask(task_name, data, asked)
        if asked.failure is not None:
            raise asked.failure
        return asked

    def _publish(self, order: Order) -> dict[str, str]:
        """Bring the bank to the sites; site -> its bank's label there, or why not."""
        labels: dict[str, str] = {}

        def accept(site: str, model: FLModel) -> None:
            labels[site] = plain_line(model.meta.get("bank") or "received")

        asked = _Asked(accept)
        with Scratch(Path(tempfile.gettempdir(), "bank")) as folder:
            file = folder / "bank.iopfl"
            export_bank(Path(self.bank), file)
            content = np.frombuffer(file.read_bytes(), dtype=np.uint8)
        data = FLModel(params_type=ParamsType.FULL, params={BANK_PARAM: content}, meta=order.to_meta())
        self._ask(TASK_PUBLISH, data, asked)
        return {**{site: fate["reason"] for site, fate in asked.fates.items()}, **labels}

    def _ask(self, task_name: str, data: FLModel, asked: _Asked) -> None:
        """Broadcast a task to the sites that are connected and were not heard yet; answers go to `asked.accept`."""
        self._asked = asked
        connected = {client.name for client in self.engine.get_clients()}
        targets = [client for client, site in self._clients.items() if client in connected and site not in asked.heard]

        def receive(model: FLModel) -> None:
            site = self._clients[model.meta["client_name"]]
            asked.heard.add(site)
            try:
                asked.accept(site, model)
            except Exception:  # FLARE would only log it, and the round would miss what became of the site
                self.exception(f"the answer of {site} cannot be read")
                asked.refuse(site, "its answer cannot be read")

        if targets:
            # `broadcast_model` would hold all answers until the last.
            self.set_fl_context(data)
            task = self._prepare_task(data=data, task_name=task_name, timeout=self.timeout, callback=receive)
            needed = min(len(targets), max(0, self.min_sites - len(asked.heard)))
            self._current_min_responses, self._current_num_targets = needed, len(targets)
            self._current_failed_clients: set[str] = set()
            self.broadcast_and_wait(
                task=task,
                targets=targets,
                min_responses=needed or len(targets),
                wait_time_after_min_received=self.grace,
                fl_ctx=self.fl_ctx,
                abort_signal=self.abort_signal,
            )
        for client, site in self._clients.items():
            if site not in asked.heard and site not in asked.fates:
                asked.refuse(site, "no answer in time" if client in connected else "not connected", SILENT)

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        """Note why a site gives no answer; FLARE alone would log the return code and drop the reason."""
        if not is_unknown_task and result.get_return_code() != ReturnCode.OK and client_name in self._clients:
            site = self._clients[client_name]
            reason = Reason.read(result.get_header(REASON_HEADER))
            self._asked.refuse(site, reason, SAT_OUT if reason.sits_out else FAILED)
            if reason is Reason.WITHHELD:
                self._asked.withheld.add(site)
        return super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)
