"""What trains at a site: the interface, and the trainer that runs in FLARE's own client process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fl_bridge.site_policy import SitePolicy
from iopfl.base.allocation import keep_blocks
from iopfl.core.order import Order, SharedModel, SiteUpdate
from iopfl.core.site_rounds import SiteRounds
from iopfl.core.sites import Case, find_cases, split_cases
from iopfl.core.task import Task, read_task
from iopfl.core.weights import Weights


class SiteTrainer(Protocol):
    """What the executor asks of a site.

    Both methods raise an `IOPFLError`, whose reason goes to the consortium and
    whose message does not, `TooFewLabelsError` or `SitsOutError` to sit the round
    out, and `CancelledError` soon after `cancelled()` is true.
    """

    def train(self, global_weights: Weights, order: Order, *, cancelled: Callable[[], bool]) -> SiteUpdate:
        """Train one round from the global weights, and accumulate the personalized model; idempotent per order."""

    def personalized(self, global_weights: Weights, order: Order, *, cancelled: Callable[[], bool]) -> SharedModel:
        """The personalized model, validated beside the given global weights."""

    def publish(self, bank: bytes) -> str:
        """Take in a bank, the bytes of an `.iopfl` file; returns its label."""

    def configure(self, policy: SitePolicy, folder: Path) -> None:
        """Take what the site's administrator decided; called before anything else.

        Args:
            policy: the site's.
            folder: where its relative paths begin.

        Raises:
            SitsOutError: the site has not agreed to the task.
        """


class InProcessTrainer:
    """Trains on a site folder, in this process: `SiteRounds` by a job's configuration."""

    def __init__(
        self,
        site_folder: str,
        task: str,
        state_folder: str,
        device: str = "cpu",
        seed: int = 0,
        turns: str = "",
        at_once: int = 1,
        proximal_weight: float = 0.0,
    ) -> None:
        """Args:
        site_folder: images and labels.
        task: name of a built-in task, or path of a YAML file.
        state_folder: where the site keeps its models.
        device: where to train.
        seed: the seed of training, together with the site's name and the round.
        turns: folder of lock files shared by the sites of one machine; empty = no waiting.
        at_once: sites that may train at the same time there.
        proximal_weight: the weight of FedProx's term.
        """
        keep_blocks()
        self.site_folder = site_folder
        self.task = task
        self.state_folder = state_folder
        self.device = device
        self.seed = seed
        self.turns = turns
        self.at_once = at_once
        self.proximal_weight = proximal_weight

    def train(
        self, global_weights: Weights, order: Order, *, cancelled: Callable[[], bool] = lambda: False
    ) -> SiteUpdate:
        """See `SiteRounds.train`."""
        return self._rounds.train(global_weights, order, proximal_weight=self.proximal_weight, cancelled=cancelled)

    def personalized(
        self, global_weights: Weights, order: Order, *, cancelled: Callable[[], bool] = lambda: False
    ) -> SharedModel:
        """See `SiteRounds.personalized`."""
        return self._rounds.personalized(global_weights, order, cancelled=cancelled)

    def publish(self, bank: bytes) -> str:
        """Nothing to do: in the simulator everybody reads the bank's folder."""
        return "read in place"

    def configure(self, policy: SitePolicy, folder: Path) -> None:
        """Nothing to take: there is no site policy in the simulator."""

    @property
    def site(self) -> str:
        """The site's name: that of its folder."""
        return Path(self.site_folder).name

    @functools.cached_property
    def _task(self) -> Task:
        return read_task(self.task)

    @functools.cached_property
    def _rounds(self) -> SiteRounds:
        return SiteRounds(
            Path(self.state_folder),
            self._task,
            site=self.site,
            cases=self._split,
            device=self.device,
            seed=self.seed,
            turns=[Path(self.turns) / f"turn-{number}" for number in range(self.at_once)] if self.turns else [],
        )

    def _split(self) -> Mapping[str, Sequence[Case]]:
        folder = Path(self.site_folder)
        return split_cases(find_cases(folder), self._task, site_folder=folder)
