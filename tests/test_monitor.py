"""Accounts, rates and endings of a run."""

from dataclasses import replace

import pytest

from pipeline.commit import Outcome
from pipeline.encoding import Precision
from pipeline.limits import LimitsConfig
from pipeline.messages import Calibration, ShardReport
from pipeline.meter import Reading, bound
from pipeline.monitor import ExitCode, Monitor, Rates, verdict
from pipeline.progress import Plain, clock
from pipeline.schedule import Schedule
from pipeline.timeline import Point
from pipeline.tokens.schema import ColumnsConfig, Counts


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Clock:
    return Clock()


def monitor(time: Clock) -> Monitor:
    return Monitor(
        shards_total=4,
        shards_before=1,
        bytes_to_do=1000,
        decode_threads=2,
        encode_lanes=1,
        shards_in_flight=2,
        now=time,
    )


def calibration(device: str) -> Calibration:
    return Calibration(device, 8, {4: 30.0, 8: 40.0}, 120.0, 32, {}, (), Precision.EXACT)


def report(samples: int, rejects: int = 0) -> ShardReport:
    counts = Counts(samples, samples - rejects, samples - rejects, rejects)
    return ShardReport(counts, Outcome.DONE)


def test_snapshot_of_a_running_job(time: Clock) -> None:
    watch, plan = monitor(time), Schedule([("a", 1), ("b", 1), ("c", 1)], LimitsConfig())
    plan.next("x", 0.0)
    watch.begun()
    watch.reading("x", Reading({"decode": 0.0, "encode": 0.0}, 0, 0, 0, 0))
    watch.snapshot(plan, actors=1)
    time.now += 10
    watch.reading("x", Reading({"decode": 6.0, "encode": 8.0}, 50, 52, 2, 200))
    now = watch.snapshot(plan, actors=1)
    assert (now.shards_total, now.shards_done, now.shards_running) == (4, 1, 1)
    assert (now.images, now.rejects, now.rate) == (50, 2, 5.0)
    assert now.eta == pytest.approx(40.0)
    assert now.bound == ("encode", pytest.approx(0.8)), "decode has two lanes: 30 percent busy"
    assert "50 images | 5.0 images/s | 2 rejects | ETA 0:40 | bound by encode (80% busy)" in now.line()


@pytest.mark.parametrize(("device", "together"), [("cpu", 30.0), ("NVIDIA H200", 40.0)])
def test_rates_beside_their_ceilings(time: Clock, device: str, together: float) -> None:
    watch = monitor(time)
    watch.calibration = calibration(device)
    watch.begun()
    time.now += 10
    watch.committed(report(150))
    rates = watch.rates(actors=1)
    assert (rates.end_to_end, rates.model_alone, rates.decode_alone) == (15.0, 40.0, 120.0)
    assert rates.bound == pytest.approx(together)
    assert rates.fraction == pytest.approx(15 / together)
    assert watch.rates(actors=2).bound == pytest.approx(2 * together)


def test_timeline_ends_with_the_last_shard(time: Clock) -> None:
    watch = monitor(time)
    watch.end(3)
    assert watch.timeline.points == [], "nothing began"
    watch.begun()
    time.now += 2
    watch.reading("x", Reading({"encode": 1.5}, 100, 100, 0, 10))
    watch.committed(report(100))
    time.now += 60
    watch.end(3)
    assert watch.timeline.points == [Point(2.0, 100, 3, {"encode": 1.5})]


def test_reading_that_was_overtaken_is_not_taken_back(time: Clock) -> None:
    watch, plan = monitor(time), Schedule([], LimitsConfig())
    watch.reading("x", Reading({"encode": 2.0}, 100, 100, 0, 10), {"decode": 3})
    watch.reading("x", Reading({"encode": 2.5}, 130, 140, 10, 20))
    watch.reading("x", Reading({"encode": 2.2}, 110, 110, 0, 20), {"decode": 5})
    now = watch.snapshot(plan, actors=1)
    assert (now.images, now.rejects, now.queues) == (130, 10, {"decode": 5})


def test_rates_of_nothing() -> None:
    assert Rates(0.0, 0.0, 0.0, 0.0).fraction == 0.0


def test_idle_time_grows_only_while_nothing_moves(time: Clock) -> None:
    watch = monitor(time)
    time.now += 50
    assert watch.idle_seconds == 50
    watch.reading("x", Reading({}, 1, 1, 0, 10))
    time.now += 20
    watch.reading("x", Reading({}, 1, 1, 0, 10))
    assert watch.idle_seconds == 20, "an actor that answers but does nothing does not move"


def test_rejects_are_judged_only_on_enough_samples(time: Clock) -> None:
    watch = monitor(time)
    watch.committed(report(999, 500))
    assert watch.reject_fraction() is None
    watch.committed(report(1))
    assert watch.reject_fraction() == 0.5


@pytest.mark.parametrize(
    ("columns", "empty"),
    [
        ({}, []),
        ({"caption": "text", "label": "cls"}, ["columns.caption=text"]),
        ({"caption": "txt", "label": None, "meta": "jsn"}, ["columns.caption=txt", "columns.meta=jsn"]),
        ({"fields": {"score": "meta.score: float"}}, ["columns.fields.score=meta.score: float"]),
    ],
)
def test_columns_that_were_asked_for_and_stay_empty(time: Clock, columns: dict, empty: list[str]) -> None:
    watch, asked = monitor(time), ColumnsConfig(**columns)
    assert watch.empty_columns(asked) == [], "nothing was seen yet"
    watch.committed(report(5))
    watch.committed(replace(report(5), filled=frozenset({"label"})))
    assert watch.empty_columns(asked) == empty


def summary(committed: int, quarantined: int, samples: int = 100, rejects: int = 0) -> dict:
    shards = {"total": 4, "committed": committed, "quarantined": quarantined}
    reasons = {"truncated": rejects} if rejects else {}
    return {"shards": shards, "samples": samples, "rejects": rejects, "rejects_by_reason": reasons}


@pytest.mark.parametrize(
    ("accounts", "stopped", "code", "says"),
    [
        (summary(4, 0), False, ExitCode.OK, "finished: 4 of 4"),
        (summary(3, 0), False, ExitCode.FAILED, "every shard was reported done, but only 3 of 4"),
        (summary(3, 1), False, ExitCode.INCOMPLETE, "1 shards are quarantined"),
        (summary(2, 0), True, ExitCode.STOPPED, "run the same command again"),
        (summary(0, 0, samples=0), True, ExitCode.STOPPED, "0 of 4"),
    ],
)
def test_verdict(accounts: dict, stopped: bool, code: ExitCode, says: str) -> None:
    found, message = verdict(accounts, stopped)
    assert found is code
    assert says in message


@pytest.mark.parametrize(
    ("committed", "foreign", "code", "says"),
    [
        (3, 1, ExitCode.STOPPED, "all shards of this run are done, but not 1 that another run has added"),
        (2, 1, ExitCode.FAILED, "every shard was reported done, but only 2 of 4"),
    ],
)
def test_verdict_beside_another_run(committed: int, foreign: int, code: ExitCode, says: str) -> None:
    found, message = verdict(summary(committed, 0), False, foreign=foreign)
    assert found is code
    assert says in message


def test_bound_of_no_work() -> None:
    assert bound({}, {}, 10.0) == ("start-up", 0.0)


def test_plain_lines_are_few(time: Clock) -> None:
    lines: list[str] = []
    plain = Plain(lines.append)
    snapshot = monitor(time).snapshot(Schedule([], LimitsConfig()), 0)
    for number in range(100):
        plain.show(snapshot)
        plain.count("accounts", number, 100)
    plain.note("an actor died")
    assert len(lines) == 2


def test_plain_count() -> None:
    lines: list[str] = []
    Plain(lines.append).count("accounts of parts", 1000, 20_000)
    assert lines == ["accounts of parts 1,000/20,000\n"]


@pytest.mark.parametrize(("seconds", "text"), [(None, "--:--"), (0, "0:00"), (61.4, "1:01"), (3725, "1:02:05")])
def test_clock(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text
