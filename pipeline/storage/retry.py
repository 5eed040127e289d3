"""The one retry policy: full jitter, a deadline for each request and one for all requests of a shard.

What a client would repeat by itself is turned off (`clients`), so that a request is sent once for each attempt here.
Credentials that are stale are asked for anew.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, sleep_using_event
from tenacity import wait_random_exponential as full_jitter

from pipeline.errors import NotFound, StorageError, TokenmillError
from pipeline.storage.failures import Busy, NoCredentials, StaleCredentials, translate
from pipeline.storage.rate import Pace
from pipeline.storage.reading import Replaced

T = TypeVar("T")
GIB = 1 << 30
FIRST_WAIT_SECONDS = 0.2  # at most; doubles with every attempt
LONGEST_WAIT_SECONDS = 15.0
NO_CREDENTIALS_SECONDS = 5.0  # actors that start together can throttle a metadata service; more is a user without any
_JITTER = full_jitter(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS)


class Budget:
    """The seconds that the requests for one object may lose in all; nothing refills it.

    Deadlines of single requests alone would let a store that fails every other one hold a shard for ever. Time is lost
    from the start of a request that fails until it works or is given up; what several lose at once counts once.

    Args:
        seconds: that may be lost.
        clock: seconds, only their differences mean anything.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._left, self._clock, self._lock = seconds, clock, Lock()
        self._counted_until = -math.inf

    @classmethod
    def of_size(cls, seconds: float, size: int) -> "Budget":
        """`seconds` for each GiB begun of an object of `size` bytes: a longer road has more stones."""
        return cls(seconds * max(1, math.ceil(size / GIB)))

    def now(self) -> float:
        """The time by the clock of this budget, in seconds."""
        return self._clock()

    def lose(self, since: float) -> None:
        """All that passed after `since` was lost."""
        with self._lock:
            now = self._clock()
            self._left -= now - max(since, self._counted_until)
            self._counted_until = now

    def left(self) -> float:
        """Seconds that may still be lost."""
        with self._lock:
            return self._left


@dataclass(frozen=True)
class Persistence:
    """How one request is tried again.

    Attributes:
        seconds: for one request, from the first attempt to the beginning of the last one.
        pace: of the requests of this process to this place.
        renew: forgets the credentials, so that the next attempt asks the provider chain.
        budget: what this request shares with others for the same shard.
        cancelled: set it, and waiting ends at once and nothing is tried again.
    """

    seconds: float
    pace: Pace
    renew: Callable[[], None]
    budget: Budget = field(default_factory=lambda: Budget(math.inf))
    cancelled: Event = field(default_factory=Event)

    def call(self, url: str, action: Callable[[], T]) -> T:
        """Try until it works, cannot work, or takes too long; the last error is raised."""
        start = self.budget.now()

        def attempt() -> T:
            self.pace.wait(self.cancelled)
            try:
                return action()
            except TokenmillError:
                raise
            except Exception as error:
                problem = translate(error, url)
                self._learn(problem)
                raise problem from error

        policy = Retrying(
            stop=self._is_enough,
            wait=self._pause,
            sleep=sleep_using_event(self.cancelled),
            retry=retry_if_exception(_passing),
            after=lambda _: self.budget.lose(start),
            reraise=True,
        )
        try:
            return policy(attempt)
        finally:
            if policy.statistics["attempt_number"] > 1:
                self.budget.lose(start)  # with the last pause, also if it was worth it

    def _learn(self, problem: TokenmillError) -> None:
        if isinstance(problem, Busy):
            self.pace.refused()
        elif isinstance(problem, StaleCredentials | NoCredentials):
            with suppress(Exception):  # if the provider chain is away for a moment: the next request asks it again
                self.renew()

    def _pause(self, state: RetryCallState) -> float:
        return min(_JITTER(state), max(0.0, self._left(state)))  # the last attempt begins at the deadline

    def _is_enough(self, state: RetryCallState) -> bool:
        return self.cancelled.is_set() or self._left(state) <= 0

    def _left(self, state: RetryCallState) -> float:
        """Seconds until the deadline."""
        assert state.outcome is not None
        assert state.seconds_since_start is not None
        hopeless = isinstance(state.outcome.exception(), NoCredentials)
        seconds = min(self.seconds, NO_CREDENTIALS_SECONDS) if hopeless else self.seconds
        return min(seconds - state.seconds_since_start, self.budget.left())


def _passing(error: BaseException) -> bool:
    return isinstance(error, StorageError | NoCredentials) and not isinstance(error, NotFound | Replaced)
