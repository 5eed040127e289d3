"""The log of a run's counters: what is kept as it grows, and that the report reads it."""

import itertools
from pathlib import Path

import pytest

from pipeline.qa.report.throughput import read_throughput
from pipeline.storage import Storage
from pipeline.timeline import MOST_POINTS, POINT_SECONDS, Point, Timeline


def point(seconds: float) -> Point:
    return Point(seconds, images=int(10 * seconds), actors=2, busy={"encode": 0.5 * seconds})


@pytest.mark.parametrize("hours", [0.1, 3.0, 50.0])
def test_points_stay_few_and_even_however_long_the_run(hours: float) -> None:
    log, end = Timeline({"encode": 1}), int(3600 * hours)
    for second in range(0, end, 5):
        log.add(point(second))
    log.end(point(end))
    times = [one.seconds for one in log.points]
    gaps = {late - early for early, late in itertools.pairwise(times[:-1])}
    assert 60 < len(times) <= MOST_POINTS + 1
    assert gaps == {log.spacing}
    assert times[-1] == end


def test_short_run_has_its_end_alone() -> None:
    log = Timeline({"encode": 1})
    log.add(point(POINT_SECONDS / 2))
    assert log.points == []
    for _ in range(2):
        log.end(point(POINT_SECONDS / 2))
    assert log.points == [point(POINT_SECONDS / 2)]


def test_last_point_takes_the_place_of_one_taken_too_late() -> None:
    log = Timeline({"encode": 1})
    late = Point(12.0, images=70, actors=2, busy={"encode": 5.0})
    log.add(point(6.0))
    log.add(late)
    log.end(point(11.0))
    assert log.points == [point(6.0), point(11.0)]


@pytest.mark.parametrize("price", [None, 0.0, 2.5])
def test_report_reads_what_was_written(price: float | None, tmp_path: Path) -> None:
    log = Timeline({"encode": 1, "decode": 4}, price)
    for seconds in (10.0, 20.0, 36.0):
        log.end(point(seconds))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "events.json").write_bytes(log.to_json())
    found = read_throughput(Storage(), str(tmp_path))
    assert found is not None
    ends, rates, shares = found.intervals()
    assert (ends.tolist(), rates.tolist()) == ([10, 20, 36], pytest.approx([10, 10, 10]))
    assert shares["encode"].tolist() == pytest.approx([0.25] * 3)
    assert found.actor_hours() == pytest.approx(2 * 36 / 3600)
    assert found.price_per_actor_hour == price
