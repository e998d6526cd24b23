"""What has left a site, counted by the site itself: rounds trained, and personalized models shared.

A server may claim any round and any federation, and ask as often as it likes: none of that moves a count. In
`local/shares/` of the site's kit:

    ledger.json            how many rounds, and which models were shared when
    answer.safetensors     the last that was shared, as it left: with its clip and noise

One model, one answer: who asks again gets the answer of the first time, with its noise and its figures, so that no
number of questions averages the noise away. A share is counted before its answer is made, and the answer is on the
disk before it leaves: a kill in between costs a share at most.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fl_bridge.privacy import privatize
from fl_bridge.site_policy import SitePolicy
from iopfl.base.errors import ConfigError, SitsOutError
from iopfl.base.locks import hold_one
from iopfl.base.private_files import write_private
from iopfl.base.reasons import Reason
from iopfl.core.order import Order, SharedModel
from iopfl.core.weights import Weights, floating, hash_weights, read_weights, serialize

FOLDER, LEDGER, ANSWER = "shares", "ledger.json", "answer.safetensors"
_DAY = 24 * 3600
_EMPTY: Mapping[str, Any] = {"rounds": 0, "last_round": "", "shares": []}


class Sharing:
    """A site's counts, and the answer that is repeated."""

    def __init__(self, policy: SitePolicy, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        """Args:
        policy: the site's.
        folder: `local` of its kit.
        now: seconds since the epoch, by the site's clock.
        """
        self._policy = policy
        self._folder = folder / FOLDER
        self._now = now

    @contextlib.contextmanager
    def count_round(self, order: Order) -> Iterator[None]:
        """Count a round while its update is made; the last one again is the same round, and a failed one is none.

        Raises:
            SitsOutError: the site has trained as many as its policy allows.
            ConfigError: the ledger is damaged.
        """
        mark = hashlib.sha256(json.dumps(order.to_meta(), sort_keys=True).encode()).hexdigest()
        with self._open() as ledger:
            before = {key: ledger[key] for key in ("rounds", "last_round")}
            is_new = mark != ledger["last_round"]
            if is_new:
                if self._policy.max_rounds and ledger["rounds"] >= self._policy.max_rounds:
                    message = f"has trained the {self._policy.max_rounds} rounds that its policy allows"
                    raise SitsOutError(message, reason=Reason.ENOUGH_ROUNDS)
                self._write({**ledger, "rounds": ledger["rounds"] + 1, "last_round": mark})
        try:
            yield
        except BaseException:  # nothing has left
            if is_new:
                with self._open() as ledger:
                    if ledger["last_round"] == mark:
                        self._write({**ledger, **before})
            raise

    def share(
        self,
        ask: Callable[[], SharedModel],
        reference: Weights,
        *,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> SharedModel:
        """The personalized model as it may leave now: floating-point entries, clipped and with noise.

        Args:
            ask: gives the model as it is.
            reference: floating-point entries of the global weights that came with the request; the difference to
                them is clipped the first time.
            cancelled: asked while another request has the ledger.

        Raises:
            SitsOutError: not now, by the site's policy.
            ConfigError: ledger or answer is damaged or gone.
        """
        with self._open(cancelled) as ledger:
            if not ledger["rounds"]:  # by the site's own count: nothing need be sent to find out
                raise SitsOutError(Reason.NO_MODEL, reason=Reason.NO_MODEL)
            refusal = self._find_refusal(ledger)
            if refusal and ledger["rounds"] > ledger["shares"][-1]["rounds"]:
                raise SitsOutError(refusal, reason=Reason.NOT_NOW)  # a model that has changed since: not worth making
            model = ask()
            content = hash_weights(floating(model.weights))
            if all(share["content"] != content for share in ledger["shares"]):
                if refusal:
                    raise SitsOutError(refusal, reason=Reason.NOT_NOW)
                share = {"content": content, "time": self._now(), "rounds": ledger["rounds"], "answered": False}
                ledger["shares"].append(share)
                self._write(ledger)
            elif ledger["shares"][-1]["content"] != content:
                message = "shared this model before another, and keeps the last answer alone"
                raise SitsOutError(message, reason=Reason.NOT_NOW)
            last = ledger["shares"][-1]
            answer = self._read_answer(content)
            if answer is None:
                if last["answered"]:
                    raise ConfigError(f"{self._folder / ANSWER}: expected the answer that was given: restore it")
                answer = self._make_answer(content, model, reference)
            if not last["answered"]:
                last["answered"] = True
                self._write(ledger)
            return answer

    def _find_refusal(self, ledger: dict[str, Any]) -> str | None:
        """Why no further model may leave now."""
        policy, shares = self._policy, ledger["shares"]
        if not shares:
            return None
        if policy.max_shares and len(shares) >= policy.max_shares:
            return f"has shared its personalized model {len(shares)} times, which its policy allows"
        if ledger["rounds"] - shares[-1]["rounds"] < policy.share_every:
            return f"shares its personalized model every {policy.share_every} rounds, by its policy"
        passed = self._now() - shares[-1]["time"]
        if passed < 0:  # the clock went back: the wait begins anew, or it could go on for years
            shares[-1]["time"] = self._now()
            self._write(ledger)
        if passed < policy.share_days * _DAY:
            return f"shares its personalized model every {policy.share_days:g} days, by its policy"
        return None

    def _make_answer(self, content: str, model: SharedModel, reference: Weights) -> SharedModel:
        policy = self._policy
        weights = privatize(floating(model.weights), reference, clip=policy.clip, noise=policy.noise)
        answer = SharedModel(weights, model.round_index, model.samples, dict(model.metrics))
        about = {"round_index": answer.round_index, "samples": answer.samples, "metrics": answer.metrics}
        content_and_about = {"content": content, "about": json.dumps(about)}
        write_private(self._folder / ANSWER, serialize(weights, content_and_about))
        return answer

    def _read_answer(self, content: str) -> SharedModel | None:
        """The kept answer; None where it is of another model, or there is none."""
        if not (self._folder / ANSWER).is_file():
            return None
        weights, metadata = read_weights(self._folder / ANSWER)
        if metadata.get("content") != content:
            return None
        return SharedModel(weights, **json.loads(metadata["about"]))

    @contextlib.contextmanager
    def _open(self, cancelled: Callable[[], bool] = lambda: False) -> Iterator[dict[str, Any]]:
        """The ledger, held by one process at a time."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with hold_one([self._folder / "lock"], cancelled=cancelled):
            for stray in self._folder.glob(".*"):  # of a write that a crash cut off
                stray.unlink()
            yield self._read()

    def _read(self) -> dict[str, Any]:
        path = self._folder / LEDGER
        if not path.is_file() and not (self._folder / ANSWER).is_file():
            return {**_EMPTY, "shares": []}
        try:
            ledger = json.loads(path.read_bytes())
            if set(ledger) != set(_EMPTY) or not isinstance(ledger["shares"], list):
                raise ValueError("other fields")
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}: expected the count of what left this site, found none that is whole: restore it from a "
                "backup; nothing is shared meanwhile"
            ) from error
        return ledger

    def _write(self, ledger: Mapping[str, Any]) -> None:
        write_private(self._folder / LEDGER, json.dumps(ledger, indent=1).encode())
