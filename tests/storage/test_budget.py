"""The seconds that the requests for one object may lose, by a clock that is moved by hand."""

import pytest

from pipeline.storage.retry import GIB, Budget


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("lost", "left"),
    [
        ([], 60),
        ([(100, 110)], 50),
        ([(100, 110), (110, 115)], 45),
        ([(100, 110), (120, 125)], 45),  # what worked in between costs nothing
        ([(100, 110), (100, 110), (105, 110)], 50),  # four requests meet one outage
        ([(100, 110), (105, 115)], 45),
        ([(100, 105), (100, 110), (100, 120)], 40),  # one request that fails again and again
        ([(100, 170)], -10),
    ],
)
def test_budget(lost: list[tuple[float, float]], left: float) -> None:
    clock = Clock()
    budget = Budget(60, clock)
    for since, until in lost:
        clock.now = until
        budget.lose(since)
    clock.now += 1000
    assert budget.left() == left


@pytest.mark.parametrize(("size", "seconds"), [(0, 60), (1, 60), (GIB, 60), (GIB + 1, 120), (100 * GIB, 6000)], ids=str)
def test_budget_of_an_object(size: int, seconds: float) -> None:
    assert Budget.of_size(60, size).left() == seconds
