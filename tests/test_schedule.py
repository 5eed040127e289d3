"""The schedule with a clock of its own: every interleaving ends, every shard in one final state."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.schedule import Assignment, Failure, Kind, LimitsConfig, Schedule, State

LIMITS = LimitsConfig(max_attempts=3, max_infra_failures=4, backoff_seconds=1.0)
BAD = Failure(Kind.TASK, "truncated", "cut")
DOWN = Failure(Kind.INFRA, "storage", "503")


def schedule(*sizes: int) -> Schedule:
    return Schedule([(f"s{i}", size) for i, size in enumerate(sizes)], LIMITS)


def take(plan: Schedule, actor: str, now: float = 0.0) -> Assignment:
    found = plan.next(actor, now)
    assert found is not None
    return found


def test_largest_shards_first() -> None:
    plan = schedule(10, 30, 20)
    assert [take(plan, "a").shard for _ in range(3)] == ["s1", "s2", "s0"]
    assert plan.next("a", 0.0) is None


def test_task_failures_until_quarantine() -> None:
    plan = schedule(1)
    for attempt in (1, 2, 3):
        found = take(plan, "a", now=100.0 * attempt)
        assert found.attempt == attempt
        assert plan.failed("s0", attempt, BAD, now=100.0 * attempt)
    assert plan.finished
    assert plan.quarantined() == {"s0": BAD}


def test_infra_failures_do_not_spend_the_attempts() -> None:
    plan = schedule(1)
    for attempt in (1, 2, 3):
        take(plan, "a", now=100.0 * attempt)
        plan.failed("s0", attempt, DOWN, now=100.0 * attempt)
    assert plan.count(State.WAITING) == 1
    take(plan, "a", now=1000.0)
    plan.failed("s0", 4, DOWN, now=1000.0)
    assert plan.quarantined() == {"s0": DOWN}


def test_backoff_before_the_next_attempt() -> None:
    plan = schedule(1)
    take(plan, "a")
    plan.failed("s0", 1, BAD, now=0.0)
    assert plan.next("a", 0.4) is None, "the pause is at least half of backoff_seconds"
    assert take(plan, "a", 1.0).attempt == 2


@pytest.mark.parametrize("late", ["done", "failed"])
def test_stale_reports_change_nothing(late: str) -> None:
    plan = schedule(1)
    take(plan, "a")
    plan.lost("a", "killed", 0.0)
    assert take(plan, "b").attempt == 2
    if late == "done":
        assert not plan.done("s0", 1)
    else:
        assert not plan.failed("s0", 1, BAD, 0.0)
    assert plan.running() == {"s0": (2, "b")}
    assert plan.done("s0", 2)
    assert not plan.done("s0", 2)
    assert plan.finished


def test_suspects_run_alone_and_only_the_culprit_is_charged() -> None:
    plan = schedule(3, 2, 1)
    assert [take(plan, "a").shard for _ in range(2)] == ["s0", "s1"]
    assert plan.lost("a", "SIGSEGV", 0.0) == ["s0", "s1"]
    for now in (10.0, 20.0, 30.0):
        assert take(plan, f"b{now}", now).shard == "s0"
        assert plan.next(f"b{now}", now) is None, "a suspect has the actor to itself"
        plan.lost(f"b{now}", "SIGSEGV", now)
        # the other suspect proves its innocence in between
        if now == 10.0:
            assert take(plan, "c", now).shard == "s1"
            assert plan.done("s1", 2)
    assert plan.quarantined()["s0"].reason == "crashed"
    assert take(plan, "d", 40.0).shard == "s2"
    assert plan.done("s2", 1)
    assert plan.finished


def test_busy_actor_empties_itself_for_a_suspect() -> None:
    plan = schedule(4, 3, 2, 1)
    take(plan, "a")
    busy = take(plan, "b")
    plan.lost("a", "killed", 0.0)
    assert plan.next("b", 0.0) is None, "it must not take more while a suspect waits for an empty actor"
    plan.done(busy.shard, busy.attempt)
    assert take(plan, "b").shard == "s0"
    assert take(plan, "c").shard == "s2", "the others go on meanwhile"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shards=st.integers(0, 12), actors=st.integers(1, 4), slots=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_any_interleaving_ends_with_every_shard_in_one_final_state(
    shards: int, actors: int, slots: int, seed: int
) -> None:
    rng = random.Random(seed)
    plan = Schedule([(f"s{i}", rng.randrange(100)) for i in range(shards)], LIMITS, seed)
    names, born, now = [f"a{i}" for i in range(actors)], actors, 0.0
    running: list[Assignment] = []
    finished: dict[str, int] = {}
    for _ in range(3000):
        if plan.finished:
            break
        now += rng.random() * 20
        for name in names:
            while sum(r.actor == name for r in running) < slots and (found := plan.next(name, now)):
                running.append(found)
        event = rng.random()
        if event < 0.15:
            dead = rng.choice(names)
            plan.lost(dead, "killed", now)
            running = [r for r in running if r.actor != dead]
            names[names.index(dead)] = f"a{born}"
            born += 1
        elif running:
            one = running.pop(rng.randrange(len(running)))
            if event < 0.35:
                assert plan.failed(one.shard, one.attempt, rng.choice([BAD, DOWN]), now)
            else:
                assert plan.done(one.shard, one.attempt)
                finished[one.shard] = finished.get(one.shard, 0) + 1
        assert sum(plan.count(state) for state in State) == shards
    assert plan.finished
    assert set(finished.values()) <= {1}
    assert plan.count(State.DONE) == len(finished)
    assert len(finished) + len(plan.quarantined()) == shards
    assert not set(finished) & set(plan.quarantined())
