"""How often somebody may try to sign in: guessing a password must take years, not hours.

Counted are tries from one address, tries of one name from one address, and tries of one name from
anywhere, so that many addresses help nobody. That last count would let a stranger keep a user out: so it
leaves alone who comes from where that user has signed in before, by a browser that is known or an address.
A name that nobody has counts like any other.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SECONDS = 60.0
TRIES_OF_ONE = 5
"""In that time, for one user name from one address."""
TRIES_OF_ALL = 30
"""In that time, for all names from one address, which may be a reverse proxy's."""
FREE_TRIES = 10
"""Of one name from anywhere; each further one has to wait twice as long as the one before."""
LONGEST_WAIT = 300.0
"""Seconds, between two tries of one name from anywhere."""
_FORGOTTEN_AFTER = 6 * 3600.0
_MOST_KEPT = 10_000


@dataclass
class _Name:
    """Tries of one name, from wherever that user is not known to be."""

    tries: int = 0
    last: float = 0.0

    def wait(self, now: float) -> float:
        beyond = self.tries - FREE_TRIES
        return self.last + min(2.0**beyond, LONGEST_WAIT) - now if beyond >= 0 else 0.0


class Throttle:
    """Counts tries to sign in; a success takes back those of its name and address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tries: dict[tuple[str, str | None], deque[float]] = {}
        self._names: dict[str, _Name] = {}
        self._known: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def admit(self, address: str, name: str | None, device: str = "") -> float:
        """Count a try, or say in how many seconds there may be another; 0 = now.

        Args:
            address: where it comes from.
            name: whose sign-in it is; None = not known before it is done.
            device: the browser, where it is known as that user's.
        """
        now, name = self._clock(), _fold(name)
        source = device or _network(address)
        with self._lock:
            limits: list[tuple[tuple[str, str | None], int]] = []
            if not device:
                limits.append(((source, None), TRIES_OF_ALL))
            if name is not None:
                limits.append(((source, name), TRIES_OF_ONE))
            waits = [self._wait(key, limit, now) for key, limit in limits]
            of_name = None
            if name is not None and not device and (source, name) not in self._known:
                of_name = self._names.get(name) or _Name()
                if of_name.tries and of_name.last <= now - _FORGOTTEN_AFTER:
                    of_name.tries = 0
                waits.append(of_name.wait(now))
            if max(waits) > 0:
                return max(waits)
            for key, _ in limits:
                self._tries.setdefault(key, deque()).append(now)
            if name is not None and of_name is not None:
                of_name.tries, of_name.last = of_name.tries + 1, now
                self._names[name] = of_name
            self._forget(now)
            return 0.0

    def forgive(self, address: str, name: str | None, device: str = "") -> None:
        """Take back the tries of who got in after all, and remember from where."""
        name, source = _fold(name), device or _network(address)
        with self._lock:
            own = self._tries.pop((source, name), deque()) if name is not None else [0.0]
            others = self._tries.get((source, None), deque())
            for _ in range(min(len(own), len(others))):
                others.pop()
            if name is None or device:
                return
            if (source, name) not in self._known:  # who was known was not counted there, and takes nothing back
                self._names.pop(name, None)
            self._known[source, name] = self._clock()

    def _wait(self, key: tuple[str, str | None], limit: int, now: float) -> float:
        tries = self._tries.get(key, deque())
        while tries and tries[0] <= now - SECONDS:
            tries.popleft()
        if not tries:
            self._tries.pop(key, None)
        return tries[0] + SECONDS - now if len(tries) >= limit else 0.0

    def _forget(self, now: float) -> None:
        """Keep memory within bounds. Of names, those tried most stay: nobody can flush one out by trying others."""
        if len(self._tries) > _MOST_KEPT:
            recent = {key: tries for key, tries in self._tries.items() if tries and tries[-1] > now - SECONDS}
            self._tries = _keep_most(recent, len)
        if len(self._names) > _MOST_KEPT:
            self._names = _keep_most(self._names, lambda name: (name.tries, name.last))
        if len(self._known) > _MOST_KEPT:
            self._known = _keep_most(self._known, float)


def _keep_most(kept: dict[Any, Any], rank: Callable[[Any], Any]) -> dict[Any, Any]:
    """Where they are too many, the half that ranks highest."""
    if len(kept) <= _MOST_KEPT:
        return kept
    return dict(sorted(kept.items(), key=lambda item: rank(item[1]))[-(_MOST_KEPT // 2) :])


def _fold(name: str | None) -> str | None:
    """The same for all ways to write a name that a sign-in service may take for one."""
    return None if name is None else name[:256].strip().casefold()


def _network(address: str) -> str:
    """An address, or of IPv6 the network of 64 bits, all of whose addresses are one machine's to choose."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((int(parsed), 64), strict=False))
