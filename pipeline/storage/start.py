"""Processes that start together do not ask for credentials at the same instant.

A cluster starts its actors within a moment. What signs their requests they often have to ask for: of the metadata
service of their machine, which is one for all its processes and throttles (EC2's answers 1,024 packets a second), or of
a token service of the cloud. So a process waits a random moment before its first request.
"""

import os
import time
from collections.abc import Callable, Mapping
from random import SystemRandom
from threading import Lock
from typing import Any, Final

SPREAD_SECONDS: Final = 1.0
# A process whose environment holds one of these has nobody to ask.
HELD: Final[Mapping[str, tuple[str, ...]]] = {
    "s3": ("AWS_ACCESS_KEY_ID",),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "abfs": (
        *("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY"),
        *("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CLIENT_SECRET"),
    ),
}
_DICE: Final = SystemRandom()


class Start:
    """The moment from which one process may ask for credentials.

    Args:
        clock: seconds, only their differences mean anything.
        sleep: waits for so many seconds.
        chance: evenly in [0, 1); from a generator that no program seeds alike in all its processes.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = _DICE.random,
    ) -> None:
        self._clock, self._sleep, self._chance = clock, sleep, chance
        self._moment: float | None = None
        self._lock = Lock()

    def wait(self) -> None:
        """Wait for the moment, which lies at most `SPREAD_SECONDS` after the first call; all threads for the same."""
        with self._lock:
            if self._moment is None:
                self._moment = self._clock() + SPREAD_SECONDS * self._chance()
        seconds = self._moment - self._clock()
        if seconds > 0:
            self._sleep(seconds)


_ours = Start()


def wait_for_turn(scheme: str, options: Mapping[str, Any]) -> None:
    """Wait for this process's moment, if it has to ask somebody for the credentials of `scheme`."""
    if must_ask(scheme, options, os.environ):
        _ours.wait()


def must_ask(scheme: str, options: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Whether a service must be asked for credentials, as far as can be told without asking.

    A profile in a file is not looked for: it costs its user a moment, once for each process.
    """
    anonymous = options.get("anon") or options.get("token") == "anon"
    return scheme in HELD and not anonymous and not any(environment.get(name) for name in HELD[scheme])
