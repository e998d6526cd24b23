"""The trainer of production: a site's own label server, over HTTP.

What is asked is named by its order, so that every request may be sent again: after a lost answer, a restart of the
label server, or one of the bridge. The label server knows what it has answered (`iopfl.lib.federation_rounds`).
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from fl_bridge.site_policy import SitePolicy
from iopfl.base.digest import content_digest, digest_header
from iopfl.base.errors import CancelledError, ConfigError, SitsOutError, TrainingError, WeightsError
from iopfl.base.files import beside
from iopfl.base.names import check_name
from iopfl.base.private_files import read_secret
from iopfl.base.reasons import Reason
from iopfl.core.order import Order, SharedModel, SiteUpdate
from iopfl.core.weights import Weights, read_weights, serialize

logger = logging.getLogger(__name__)

_TIMEOUT = (10, 120)
"""Seconds to connect, and between two bytes."""
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 10.0
_POLL_SECONDS = (0.2, 2.0)
_MAX_STOPS = 3
"""Somebody at the site who stops a round's training so often means it."""
_AGAIN = (502, 503, 504)


class LabelServerTrainer:
    """Has a site's label server train (`SiteTrainer`)."""

    def __init__(self, task: str, seed: int = 0, proximal_weight: float = 0.0) -> None:
        """Args:
        task: its name.
        seed: the seed of training, together with the site's name and the round.
        proximal_weight: the weight of FedProx's term.
        """
        self.task = task
        self.seed = seed
        self.proximal_weight = proximal_weight
        self._policy = SitePolicy()
        self._folder = Path()
        self._session = requests.Session()
        # Neither a proxy nor another password from the environment: weights and token go to `site.yaml`'s address.
        self._session.trust_env = False

    def configure(self, policy: SitePolicy, folder: Path) -> None:
        """Take the site's settings: where its label server is, and how patient to be with it.

        Raises:
            SitsOutError: the site has not agreed to the task.
        """
        policy.check_task(self.task)
        self._policy = policy
        self._folder = folder

    def train(
        self, global_weights: Weights, order: Order, *, cancelled: Callable[[], bool] = lambda: False
    ) -> SiteUpdate:
        """Train one round there.

        Raises:
            SitsOutError: too few labels, or a clinician's training took longer than the patience.
            TrainingError: it failed there.
            CancelledError: `cancelled` said so; the training there was stopped.
        """
        state, weights = self._carry_out("train", global_weights, order, cancelled)
        return SiteUpdate(weights, state["samples"], state["metrics"])

    def personalized(
        self, global_weights: Weights, order: Order, *, cancelled: Callable[[], bool] = lambda: False
    ) -> SharedModel:
        """The site's personalized model; raises as `train`."""
        state, weights = self._carry_out("share", global_weights, order, cancelled)
        return SharedModel(weights, state["personalized_round"], state["samples"], state["metrics"])

    def publish(self, bank: bytes) -> str:
        """Bring a bank to the label server, as an `.iopfl` file's bytes; returns its label.

        Raises:
            ConfigError: refused, e.g. because its signer is not trusted there.
        """
        answer = self._send("PUT", f"{self._url}/bank", data=bank, headers={"Content-Digest": content_digest(bank)})
        return answer.json()["bank"]

    @property
    def _url(self) -> str:
        task = quote(check_name(self.task, "a task"), safe="")
        return f"{self._policy.label_server.rstrip('/')}/iopfl/federations/{task}"

    def _carry_out(
        self, kind: str, global_weights: Weights, order: Order, cancelled: Callable[[], bool]
    ) -> tuple[Mapping[str, Any], Weights]:
        """Follow an order until it is answered."""
        federation = quote(check_name(order.federation, "a federation id"), safe="")
        url = f"{self._url}/{federation}/rounds/{order.round_index:d}/{kind}"
        what: dict[str, Any] = {"params": {"base_hash": order.base_hash}, "cancelled": cancelled}
        options = {
            "seed": self.seed,
            "min_new_labels": self._policy.min_new_labels,
            "proximal_weight": self.proximal_weight,
        }
        stops, asked, waits = 0, False, _Waits(self._policy.patience)
        try:
            while True:
                state = self._send("GET", url, **what).json()
                status = state["status"]
                if status == "answered":
                    return state, self._fetch(f"{url}/weights", **what)
                if status == "missing":
                    body = serialize(global_weights)
                    self._send(
                        "PUT", f"{url}/global", data=body, headers={"Content-Digest": content_digest(body)}, **what
                    )
                elif status == "training":
                    asked = True
                    waits.progressed()
                elif status == "stopped" and stops >= _MAX_STOPS:
                    raise SitsOutError(f"its training was stopped at the site {stops} times", reason=Reason.STOPPED)
                elif status in ("sits out", "failed") and (asked or state.get("says") == Reason.NO_MODEL):
                    # Else of an earlier try: much may have changed.
                    error = SitsOutError if status == "sits out" else TrainingError
                    raise error(state["reason"], reason=Reason.read(state.get("says")))
                else:
                    started = self._send("POST", url, json=options, accept=(429,), **what)
                    if started.status_code != requests.codes.too_many_requests:
                        stops += status == "stopped"
                        asked = True
                        waits.progressed()
                    elif waits.is_over():
                        message = f"a training of its own ran for more than {self._policy.patience:.0f} s"
                        raise SitsOutError(message, reason=Reason.BUSY)
                waits.sleep(cancelled)
        except CancelledError:
            self._send("DELETE", url, params=what["params"])
            raise

    def _fetch(self, url: str, **what: Any) -> Weights:
        """Download weights, checked against their digest."""
        with beside(Path(tempfile.gettempdir(), "weights"), suffix=".safetensors") as path:
            with self._streamed(url, **what) as response, path.open("wb") as file:
                digest = hashlib.sha256()
                for chunk in response.iter_content(2**20):
                    digest.update(chunk)
                    file.write(chunk)
                if response.headers.get("Content-Digest") != digest_header(digest.digest()):
                    raise WeightsError("the label server's weights are not what their Content-Digest says")
            return read_weights(path)[0]

    @contextmanager
    def _streamed(self, url: str, **what: Any) -> Iterator[requests.Response]:
        response = self._send("GET", url, stream=True, **what)
        try:
            yield response
        finally:
            response.close()

    def _send(
        self,
        method: str,
        url: str,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        accept: tuple[int, ...] = (),
        headers: Mapping[str, str] | None = None,
        **what: Any,
    ) -> requests.Response:
        """Send a request, again and again while the server is away.

        Raises:
            ConfigError: the server refuses it, in its own words.
            TrainingError: the server does not answer for longer than the patience.
        """
        waits = _Waits(self._policy.patience)
        while True:
            try:
                response = self._session.request(
                    method,
                    url,
                    allow_redirects=False,
                    headers={**self._authorization(), **(headers or {})},
                    timeout=_TIMEOUT,
                    verify=str(self._folder / self._policy.certificate) if self._policy.certificate else True,
                    **what,
                )
                if response.is_redirect:
                    raise ConfigError("the label server sends the bridge elsewhere: correct label_server in site.yaml")
                if response.ok or response.status_code in accept:
                    return response
                if response.status_code not in _AGAIN:
                    raise ConfigError(f"the label server refuses: {_detail(response)}", reason=Reason.REFUSED)
                problem = f"status {response.status_code}"
            except (requests.ConnectionError, requests.Timeout) as error:
                problem = type(error).__name__
            if waits.is_over():
                message = f"the label server does not answer ({problem}) for {self._policy.patience:.0f} s"
                raise TrainingError(message, reason=Reason.AWAY)
            logger.warning("%s: %s; trying again", self._policy.label_server, problem)
            waits.sleep(cancelled, longest=_LONGEST_WAIT)

    def _authorization(self) -> dict[str, str]:
        """Read anew for each request: tokens are short-lived, and somebody renews the file."""
        if not self._policy.token_file:
            return {}
        return {"Authorization": f"Bearer {read_secret(self._folder / self._policy.token_file)}"}


class _Waits:
    """Pauses that grow, and the time since something last went on."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._since = time.monotonic()
        self._pause = _FIRST_WAIT

    def progressed(self) -> None:
        self._since = time.monotonic()

    def is_over(self) -> bool:
        return time.monotonic() - self._since > self._patience

    def sleep(self, cancelled: Callable[[], bool], *, longest: float = _POLL_SECONDS[1]) -> None:
        """Pause; a pause is cut short when `cancelled`.

        Raises:
            CancelledError: it was.
        """
        end = time.monotonic() + self._pause
        self._pause = min(longest, self._pause * 1.3)
        while True:
            if cancelled():
                raise CancelledError("the round was cancelled")
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _POLL_SECONDS[0]))


def _detail(response: requests.Response) -> str:
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.reason
    return f"{detail} (status {response.status_code})"
