"""The pauses between attempts: by lot, so that those who failed together do not come back together."""

from threading import Event

import pytest
from botocore.exceptions import CredentialRetrievalError

from pipeline.errors import StorageError
from pipeline.storage import retry
from pipeline.storage.failures import StaleCredentials
from pipeline.storage.rate import Pace
from pipeline.storage.retry import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, Persistence

FAILURES = 9
CALLS = 200


class Pauses(Event):
    """Notes what it is asked to wait, and does not."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.seconds.append(timeout)
        return False


def pauses() -> list[float]:
    """Of a request that works at last (seconds)."""
    left, noted = iter(range(FAILURES)), Pauses()

    def action() -> None:
        if next(left, None) is not None:
            raise StorageError("away")

    Persistence(seconds=1e9, pace=Pace(), renew=lambda: None, cancelled=noted).call("s3://bucket/a", action)
    return noted.seconds


def test_provider_chain_that_is_away_too_costs_an_attempt() -> None:
    """An error in renewing says less than the one that called for it, and is no reason to give up."""
    problems, noted = iter([StaleCredentials("expired"), StaleCredentials("expired")]), Pauses()

    def action() -> str:
        if (problem := next(problems, None)) is not None:
            raise RuntimeError(problem)
        return "done"

    def away() -> None:
        raise CredentialRetrievalError(provider="custom-process", error_msg="503")

    persistence = Persistence(seconds=1e9, pace=Pace(), renew=away, cancelled=noted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "translate", lambda error, _url: error.args[0])
        assert persistence.call("s3://bucket/a", action) == "done"
    assert len(noted.seconds) == 2


@pytest.fixture(scope="module")
def drawn() -> list[list[float]]:
    """The pauses of many requests."""
    return [pauses() for _ in range(CALLS)]


@pytest.mark.parametrize("number", range(FAILURES))
def test_pause_is_drawn_evenly_below_a_limit_that_doubles(drawn: list[list[float]], number: int) -> None:
    limit = min(FIRST_WAIT_SECONDS * 2**number, LONGEST_WAIT_SECONDS)
    seconds = sorted(one[number] for one in drawn)
    assert 0 <= seconds[0] < 0.1 * limit
    assert 0.9 * limit < seconds[-1] <= limit
    assert seconds[CALLS // 2] == pytest.approx(limit / 2, rel=0.3)
