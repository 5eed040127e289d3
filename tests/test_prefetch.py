"""Work ahead, in order, within a budget."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.prefetch import ordered_map


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_results_in_the_order_of_the_items(pool: ThreadPoolExecutor) -> None:
    done = list(ordered_map(pool, lambda x: x * x, range(200), weigh=lambda _: 1, budget=7))
    assert done == [(x, x * x) for x in range(200)]


@pytest.mark.parametrize("budget", [1, 3, 10])
def test_items_taken_ahead_stay_within_the_budget(pool: ThreadPoolExecutor, budget: int) -> None:
    taken = yielded = worst = 0

    def items():
        nonlocal taken
        for x in range(50):
            taken += 1
            yield x

    for _ in ordered_map(pool, lambda x: x, items(), weigh=lambda _: 1, budget=budget):
        worst = max(worst, taken - yielded)
        yielded += 1
    assert yielded == 50
    assert worst <= budget + 1, "at most the budget in flight, and the item that did not fit"
    assert worst >= budget, "the budget is used"


def test_item_heavier_than_the_budget_passes_alone(pool: ThreadPoolExecutor) -> None:
    assert [r for _, r in ordered_map(pool, str, [1, 99, 2], weigh=lambda x: x, budget=10)] == ["1", "99", "2"]


def test_failure_comes_in_order_and_cancels_the_rest(pool: ThreadPoolExecutor) -> None:
    gate, ran = threading.Event(), []

    def work(x: int) -> int:
        if x == 2:
            raise ValueError("two")
        if x > 2:
            gate.wait(5)
            ran.append(x)
        return x

    got = ordered_map(pool, work, range(100), weigh=lambda _: 1, budget=50)
    assert [next(got), next(got)] == [(0, 0), (1, 1)]
    with pytest.raises(ValueError, match="two"):
        next(got)
    gate.set()
    pool.shutdown(wait=True)
    assert len(ran) <= 4, "only work that had begun goes on"
