"""How fast one process may ask one store: additive increase, multiplicative decrease (AIMD; Chiu and Jain, 1989).

Nothing is held back until a store asks for fewer requests (503 SlowDown, 429). Then all threads of the process share a
pace below what they had, which grows again with time and is lifted when it binds nobody any more.
"""

import time
from collections import deque
from collections.abc import Callable
from math import inf
from threading import Event, Lock

SLOWEST = 2.0  # requests per second; what is slower looks like a hang
SLOWEST_GROWTH = 1.0  # requests per second, each second
MEMORY_SECONDS = 1.0  # over which the rate of an unlimited process is counted
DEAF_SECONDS = 1.0  # after a cut: what is refused then was sent before it
KEPT = 0.7  # share of the pace after a cut; half would idle away what the store has to give
RECOVERY_SECONDS = 5.0  # in which the pace grows by the rate at which the store refused
FREE_FACTOR = 4.0  # times that rate: then the pace is lifted


class Pace:
    """The requests that one process sends to one place, kept below the rate which that place bears.

    Args:
        clock: seconds, only their differences mean anything.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, Lock()
        self._recent: deque[float] = deque()
        self._next = -inf  # when the next request may start
        self._cut_at = -inf
        self._rate_at_cut = inf  # requests per second right after the last cut; infinite: no limit
        self._refused_rate = inf  # at which the store refused

    def rate(self) -> float:
        """Requests per second that are allowed now; infinite if nothing is held back."""
        with self._lock:
            return self._rate(self._clock())

    def reserve(self) -> float:
        """Take the next free slot; returns the seconds to wait for it."""
        with self._lock:
            now = self._clock()
            start = max(now, self._next)
            self._next = start + 1 / self._rate(now)
            self._recent.append(start)
            self._forget(now)
            return start - now

    def wait(self, cancelled: Event) -> None:
        """Wait for this request's slot, or until it is cancelled."""
        seconds = self.reserve()
        if seconds > 0:
            cancelled.wait(seconds)

    def refused(self) -> None:
        """The store asked for fewer requests: cut the pace, at most once every `DEAF_SECONDS`."""
        with self._lock:
            now = self._clock()
            if now - self._cut_at < DEAF_SECONDS:
                return
            self._forget(now)
            self._refused_rate = max(SLOWEST, min(self._rate(now), len(self._recent) / MEMORY_SECONDS))
            self._rate_at_cut = max(SLOWEST, self._refused_rate * KEPT)
            self._cut_at = now

    def _rate(self, now: float) -> float:
        if self._rate_at_cut == inf:
            return inf
        growth = max(SLOWEST_GROWTH, self._refused_rate / RECOVERY_SECONDS)
        rate = self._rate_at_cut + growth * (now - self._cut_at)
        if rate > FREE_FACTOR * self._refused_rate:
            self._rate_at_cut = rate = inf
        return rate

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0] < now - MEMORY_SECONDS:
            self._recent.popleft()


_paces: dict[str, Pace] = {}


def pace_of(place: str) -> Pace:
    """The one pace of this process at a place (scheme, bucket and endpoint)."""
    return _paces.setdefault(place, Pace())
