"""How often somebody may try to sign in: guessing a password must take years, not hours."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

SECONDS = 60.0
TRIES_OF_ONE = 5
"""In that time, for one user name from one address."""
TRIES_OF_ALL = 30
"""In that time, for all names from one address, which may be a reverse proxy's."""
_MOST_KEPT = 10_000


class Throttle:
    """Counts tries to sign in; a success takes back those of its name and address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tries: dict[tuple[str, str | None], deque[float]] = {}
        self._lock = threading.Lock()

    def admit(self, address: str, name: str) -> float:
        """Count a try, or say in how many seconds there may be another; 0 = now."""
        now = self._clock()
        with self._lock:
            kinds: list[tuple[tuple[str, str | None], int]] = [
                ((address, name), TRIES_OF_ONE),
                ((address, None), TRIES_OF_ALL),
            ]
            waits = [self._wait(key, limit, now) for key, limit in kinds]
            if max(waits) > 0:
                return max(waits)
            for key, _ in kinds:
                self._tries.setdefault(key, deque()).append(now)
            if len(self._tries) > _MOST_KEPT:
                self._tries = {key: tries for key, tries in self._tries.items() if tries and tries[-1] > now - SECONDS}
            return 0.0

    def forgive(self, address: str, name: str) -> None:
        """Take back the tries of who got in after all."""
        with self._lock:
            own = self._tries.pop((address, name), deque())
            others = self._tries.get((address, None), deque())
            for _ in range(min(len(own), len(others))):
                others.pop()

    def _wait(self, key: tuple[str, str | None], limit: int, now: float) -> float:
        tries = self._tries.get(key, deque())
        while tries and tries[0] <= now - SECONDS:
            tries.popleft()
        if not tries:
            self._tries.pop(key, None)
        return tries[0] + SECONDS - now if len(tries) >= limit else 0.0
