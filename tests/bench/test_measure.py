"""Clocks that are right about work whose cost is known."""

import time

import pytest

from pipeline.bench.measure import Spread, Taken, free_cores, peak_memory, repeat
from tests.support.memory import peak_bytes


def test_work_is_repeated_for_the_time_given_and_once_at_least() -> None:
    done = []
    assert repeat(lambda: done.append(1) or 5.0, 0.0).units == 5.0
    taken = repeat(lambda: done.append(1) or time.sleep(0.01) or 1.0, 0.05)
    assert taken.units == len(done) - 1
    assert 0.05 <= taken.wall < 5
    assert taken.rate == taken.units / taken.wall


def test_waiting_costs_no_cpu_time_and_work_does() -> None:
    def spin() -> float:
        end = time.process_time() + 0.03
        while time.process_time() < end:
            pass
        return 1.0

    waited, worked = repeat(lambda: time.sleep(0.03) or 1.0, 0), repeat(spin, 0)
    assert worked.cpu >= 0.03 > waited.cpu


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=3.0)
    assert Taken(10.0, 2.0, 1.0).rate == 5.0


@pytest.mark.parametrize("cores", [1, 3])
def test_free_cores_are_at_most_those_there_are(cores: int) -> None:
    assert 0 < free_cores(cores) <= cores


def test_peak_memory_is_the_kernels() -> None:
    assert peak_memory() == peak_bytes()
