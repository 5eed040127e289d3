"""What tests of retries look at."""

import pytest

from pipeline.storage.retry import Persistence


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """The errors of all attempts that failed."""
    failed, learn = list[Exception](), Persistence._learn
    monkeypatch.setattr(Persistence, "_learn", lambda own, problem: failed.append(problem) or learn(own, problem))
    return failed
