"""The real driver and schedule on virtual time: small sites, stated faults, the same figures every time."""

from dataclasses import replace

import pytest

from pipeline.limits import LimitsConfig
from tests.benchmarks.scaling.picture import picture
from tests.benchmarks.scaling.simulate import Figures, simulate
from tests.benchmarks.scaling.site import DriverCosts, Rates, Site, Times

STEADY = Times(work=[1.0], open=[0.1], finish=[0.1], load=[10.0])
CALM = Rates(deaths=0, failures=0, slow_streams=0, slow_nodes=0)
SMALL = Site(gpus=16, shards=320, times=STEADY, rates=CALM, warm_up=0.0)


def without_clock(figures: Figures) -> Figures:
    """The figures but for what the simulation itself took."""
    return replace(figures, seconds=0.0)


def test_fleet_without_faults_loses_only_its_start_and_its_tail() -> None:
    found = simulate(SMALL)
    assert (found.committed, found.attempts, found.lost, found.repeated) == (320, 320, 0, 0.0)
    wall = found.hours * 3600
    start, canary = 10.0 + 10.0 + 10.0, 5.0  # the first actor's load and calibration, the load of the others
    assert wall == pytest.approx(found.efficiency * wall + start + canary, rel=0.1)


def test_same_seed_gives_the_same_figures() -> None:
    site = replace(SMALL, gpus=8, shards=40, rates=Rates(deaths=5, preemptions=20, away=10, failures=0.1))
    assert without_clock(simulate(site)) == without_clock(simulate(site))
    assert simulate(replace(site, seed=1)).hours != simulate(site).hours


def test_faults_cost_time_and_no_shard() -> None:
    rates = Rates(deaths=20, preemptions=30, away=20, failures=0.05, slow_streams=0.05, slow_nodes=0.2)
    found = simulate(replace(SMALL, rates=rates))
    assert found.committed == 320
    assert found.lost > 0
    assert found.attempts > 320
    assert found.efficiency < simulate(SMALL).efficiency


def test_long_pauses_are_no_silence() -> None:
    pause, limits = 2000.0, LimitsConfig()
    assert pause / 2 > 2 * limits.stall_seconds
    settings = [f"limits.backoff_seconds={pause}", f"limits.max_backoff_seconds={pause}"]
    found = simulate(replace(SMALL, rates=replace(CALM, failures=0.01)), settings=settings)
    assert found.committed == 320
    assert found.hours * 3600 > pause / 2, "at the end all that was left waited for its pause"


def hours(site: Site, **choices: bool) -> float:
    """Of several seeds together: one alone may be lucky."""
    return sum(simulate(replace(site, seed=seed), **choices).hours for seed in range(4))


def test_slow_streams_are_repeated_elsewhere() -> None:
    site = replace(SMALL, shards=64, rates=replace(CALM, slow_streams=0.05))
    assert hours(site) < 0.95 * hours(site, speculation=False)


def test_largest_first_ends_sooner() -> None:
    site = replace(SMALL, shards=160, spread=0.8)
    assert hours(site) < 0.95 * hours(site, largest_first=False)


def test_driver_that_is_slow_bounds_the_run() -> None:
    slow = simulate(replace(SMALL, costs=DriverCosts(call=0.2, answer=0.2)))
    assert slow.driver > 0.5
    assert slow.efficiency < 0.7 * simulate(SMALL).efficiency


def test_picture_has_a_bar_for_every_fleet() -> None:
    found = [simulate(replace(SMALL, gpus=gpus, shards=10 * gpus)) for gpus in (1, 2)]
    assert picture(found).count("<rect") == 1 + 2 * 4 + 4
