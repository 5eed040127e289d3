"""The one retry policy: full jitter, one deadline for each request, and credentials asked for anew when they are stale.

What a client would repeat by itself is turned off (`remote`), so that a request is sent once for each attempt here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, sleep_using_event
from tenacity import wait_random_exponential as full_jitter

from pipeline.errors import NotFound, StorageError, TokenmillError
from pipeline.storage.failures import Busy, NoCredentials, StaleCredentials, translate
from pipeline.storage.rate import Pace
from pipeline.storage.reading import Replaced

T = TypeVar("T")
FIRST_WAIT_SECONDS = 0.2  # at most; doubles with every attempt
LONGEST_WAIT_SECONDS = 15.0
NO_CREDENTIALS_SECONDS = 5.0  # actors that start together can throttle a metadata service; more is a user without any
_JITTER = full_jitter(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS)


@dataclass(frozen=True)
class Persistence:
    """How one request is tried again.

    Attributes:
        seconds: in all, from the first attempt to the beginning of the last one.
        pace: of the requests of this process to this place.
        renew: forgets the credentials, so that the next attempt asks the provider chain.
        cancelled: set it, and waiting ends at once and nothing is tried again.
    """

    seconds: float
    pace: Pace
    renew: Callable[[], None]
    cancelled: Event = field(default_factory=Event)

    def call(self, url: str, action: Callable[[], T]) -> T:
        """Try until it works, cannot work, or takes too long; the last error is raised."""

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
            reraise=True,
        )
        return policy(attempt)

    def _learn(self, problem: TokenmillError) -> None:
        if isinstance(problem, Busy):
            self.pace.refused()
        elif isinstance(problem, StaleCredentials | NoCredentials):
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
        return seconds - state.seconds_since_start


def _passing(error: BaseException) -> bool:
    return isinstance(error, StorageError | NoCredentials) and not isinstance(error, NotFound | Replaced)
