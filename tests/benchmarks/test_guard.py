"""Nothing has become slow: each way of ours beside the plain one, in the same moment. `guard` has the floors."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tests.benchmarks import guard
from tests.benchmarks.guard import Contest, ratio

SLOWER = 4  # times: well further than any floor lies below what is measured


@pytest.fixture(scope="module", params=["tar walk", "decoding", "encoding", "writing"])
def contest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contest]:
    """Each of them."""
    with ExitStack() as stack:
        contests: dict[str, Callable[[], Contest]] = {
            "tar walk": guard.tar_walk,
            "decoding": guard.decoding,
            "encoding": lambda: stack.enter_context(guard.encoding()),
            "writing": lambda: guard.writing(tmp_path_factory.mktemp("parts")),
        }
        yield contests[request.param]()


def test_ours_is_fast_enough(contest: Contest) -> None:
    found = ratio(contest)
    print(f"{found:.2f}x, floor {contest.floor}x")
    assert found >= contest.floor


def test_planted_slowdown_is_noticed(contest: Contest) -> None:
    def slow() -> None:
        for _ in range(SLOWER):
            contest.ours()

    assert ratio(replace(contest, ours=slow), turns=3) < contest.floor
