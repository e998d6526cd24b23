"""Following a running federation by its state folder: a progress bar, and a line per site after every round."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from fl_bridge.describing import describe_round
from fl_bridge.record import FederationRecord
from iopfl.core.round_files import PROGRESS


class Follower:
    """Looks at a federation's state and shows what is new."""

    def __init__(self, state: Path, rounds: int, stream: TextIO | None) -> None:
        """Args:
        state: its folder, with the sites' own beneath `sites/`.
        rounds: to be reached.
        stream: where to show; None = nowhere.
        """
        self._state = state
        self._rounds = rounds
        self._stream = stream
        self._record = FederationRecord.open(state)
        self._shown = self._record.rounds_done
        self._bar: tqdm | None = None

    def __enter__(self) -> Follower:
        if self._stream is not None:
            sites = ", ".join(self._record.clients.values())
            begun = f", going on after round {self._shown}/{self._rounds}" if self._shown else ""
            self._say(f"federation {self._record.federation} of {sites}{begun}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_bar()

    def look(self) -> FederationRecord:
        """The state as it is now; what is new in it is shown."""
        self._record = FederationRecord.open(self._state)
        if self._stream is not None:
            if self._record.rounds_done > self._shown:
                self._close_bar()
            for record in self._record.rounds[self._shown :]:
                for line in describe_round(record, self._rounds):
                    self._say(line)
            self._shown = self._record.rounds_done
            if self._shown < self._rounds:
                self._show_steps()
        return self._record

    def _show_steps(self) -> None:
        """Steps of training of the running round, over all sites; a site yet to begin counts like the others."""
        running = [report for report in self._reports() if report["round_index"] == self._shown]
        if not running:
            return
        known = sum(report["steps"] for report in running)
        total = max(known, known * len(self._record.clients) // len(running))
        if self._bar is None:
            terminal = bool(self._stream and self._stream.isatty())
            name = f"round {self._shown + 1}/{self._rounds}"
            interval = 0.1 if terminal else 10.0
            self._bar = tqdm(total=total, desc=name, unit="step", file=self._stream, leave=False, mininterval=interval)
        self._bar.total = total
        self._bar.update(sum(report["step"] for report in running) - self._bar.n)

    def _reports(self) -> Iterable[dict[str, Any]]:
        for path in self._state.glob(f"sites/*/{self._record.federation}/{PROGRESS}"):
            with contextlib.suppress(OSError, ValueError):
                yield json.loads(path.read_bytes())

    def _say(self, line: str) -> None:
        tqdm.write(line, file=self._stream)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
