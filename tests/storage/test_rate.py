"""The pace: a store that asks for fewer requests gets fewer, from all threads together, and as many as it bears."""

import math
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event, Lock

import pytest

from pipeline.storage import Storage, StorageConfig
from pipeline.storage.rate import FREE_FACTOR, KEPT, RECOVERY_SECONDS, SLOWEST, Pace, pace_of
from tests.support.fault_proxy import Fault, Request, fault_proxy
from tests.support.s3 import S3


@dataclass
class Clock:
    """Seconds that pass when they are told to."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def after(pace: Pace, clock: Clock, rate: int) -> Pace:
    """A pace at which `rate` requests per second were refused."""
    for _ in range(rate):
        pace.reserve()
        clock.now += 0.999 / rate
    pace.refused()
    return pace


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_is_held_back_before_a_refusal(clock: Clock) -> None:
    pace = Pace(clock)
    assert [pace.reserve() for _ in range(10_000)] == [0.0] * 10_000
    assert pace.rate() == math.inf


@pytest.mark.parametrize(("before", "now"), [(100, 100 * KEPT), (10, 10 * KEPT), (1, SLOWEST)])
def test_pace_after_a_refusal(clock: Clock, before: int, now: float) -> None:
    assert after(Pace(clock), clock, before).rate() == pytest.approx(now, rel=0.02)


def test_slots_are_evenly_apart(clock: Clock) -> None:
    pace = after(Pace(clock), clock, 100)
    waits = [pace.reserve() for _ in range(8)]
    assert waits == pytest.approx([number / (100 * KEPT) for number in range(8)], rel=0.05)


def test_refusals_of_one_moment_count_once(clock: Clock) -> None:
    pace = after(Pace(clock), clock, 100)
    for _ in range(50):
        pace.refused()
    assert pace.rate() == pytest.approx(100 * KEPT, rel=0.02)


def test_refusals_that_go_on_cut_again(clock: Clock) -> None:
    pace = after(Pace(clock), clock, 100)
    for _ in range(30):
        clock.now += 1.1
        pace.reserve()
        pace.refused()
    assert pace.rate() == SLOWEST


def test_recovery(clock: Clock) -> None:
    pace = after(Pace(clock), clock, 100)
    clock.now += RECOVERY_SECONDS * (1 - KEPT)
    assert pace.rate() == pytest.approx(100, rel=0.02)
    clock.now += RECOVERY_SECONDS * FREE_FACTOR
    assert pace.rate() == math.inf
    assert pace.reserve() == 0.0


def test_one_pace_for_a_place() -> None:
    assert pace_of("a") is pace_of("a")
    assert pace_of("a") is not pace_of("b")


def test_waiting_ends_when_it_is_cancelled(clock: Clock) -> None:
    pace, cancelled, start = after(Pace(clock), clock, 1), Event(), time.monotonic()
    cancelled.set()
    for _ in range(100):  # fifty seconds of slots
        pace.wait(cancelled)
    assert time.monotonic() - start < 5


@dataclass
class Limit:
    """A plan: more than `rate` requests in a second of the clock are refused."""

    rate: float
    came: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    lock: Lock = field(default_factory=Lock)

    def __call__(self, request: Request) -> Fault | None:
        with self.lock:
            second = int(time.monotonic())
            self.came[second] += 1
            if self.came[second] <= self.rate:
                return None
            self.refused[second] += 1
            return Fault.SLOW_DOWN if self.came[second] % 2 else Fault.TOO_MANY


@pytest.mark.system
def test_store_that_bears_little(s3: S3) -> None:
    """16 threads ask as fast as they can, of a store that bears 20 requests a second."""
    Storage().write("s3://tests/slow/a", b"x")
    over, limit = Event(), Limit(20)

    def ask(storage: Storage) -> int:
        done = 0
        while not over.is_set():
            storage.stat("s3://tests/slow/a")
            done += 1
        return done

    with fault_proxy(s3.endpoint, limit) as proxy, ThreadPoolExecutor(16) as pool:
        storage = Storage(StorageConfig(options={"endpoint_url": proxy.endpoint}))
        asking = [pool.submit(ask, storage) for _ in range(16)]
        over.wait(8)
        limit.rate = math.inf
        lifted = int(time.monotonic())
        over.wait(8)
        over.set()
        assert sum(future.result() for future in asking) > 8 * 10, "the store was not used"
    first, *_, last = sorted(limit.came)
    settled = range(first + 3, lifted - 1)
    assert proxy.faults.keys() == {Fault.SLOW_DOWN, Fault.TOO_MANY}
    assert max(limit.came[second] for second in settled) <= 40, f"not slowed down: {limit.came}"
    assert sum(limit.refused[second] for second in settled) < 0.4 * sum(limit.came[second] for second in settled)
    assert max(limit.came[second] for second in range(lifted + 2, last)) > 40, f"not recovered: {limit.came}"
