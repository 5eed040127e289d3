"""The schedule with a clock of its own: every interleaving ends, every shard in one final state."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.limits import LimitsConfig
from pipeline.schedule import Assignment, Failure, Kind, Schedule, State

LIMITS = LimitsConfig(max_attempts=3, max_infra_failures=4, backoff_seconds=1.0, stall_seconds=100, sample_seconds=50)
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


def test_canaries_of_the_middle_size_before_the_largest() -> None:
    sizes = {"s0": 10, "s1": 30, "s2": 20, "s3": 40, "s4": 50}
    plan = Schedule(sizes.items(), LIMITS, canaries=1)
    assert [take(plan, "a").shard for _ in range(5)] == ["s1", "s4", "s3", "s2", "s0"]


def test_actors_with_the_fewest_bytes_are_asked_first() -> None:
    plan = schedule(10, 30, 20)
    for actor in "abc":
        take(plan, actor)  # a: 30, b: 20, c: 10
    assert plan.by_load(["a", "b", "c", "new"]) == ["new", "c", "b", "a"]


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


def test_pausing_only_while_all_that_is_left_waits_for_its_pause() -> None:
    plan = schedule(10, 20)
    take(plan, "a")
    assert not plan.pausing(0.0), "one runs, one waits for an actor"
    plan.failed("s1", 1, BAD, now=0.0)
    assert not plan.pausing(0.0), "one waits for an actor"
    take(plan, "a")
    assert not plan.pausing(0.0), "one runs"
    plan.done("s0", 1, 0.0)
    assert plan.pausing(0.4)
    assert not plan.pausing(1.0), "the pause is over, and no actor asks"
    take(plan, "a", 1.0)
    plan.done("s1", 2, 2.0)
    assert not plan.pausing(2.0), "nothing is left"


@pytest.mark.parametrize("late", ["done", "failed"])
def test_stale_reports_change_nothing(late: str) -> None:
    plan = schedule(1)
    take(plan, "a")
    plan.lost("a", "killed", 0.0)
    assert take(plan, "b").attempt == 2
    if late == "done":
        assert plan.done("s0", 1, 0.0) is None
    else:
        assert not plan.failed("s0", 1, BAD, 0.0)
    plan.progress("s0", 1, 99, 50.0)
    assert plan.running() == {"s0": {2: "b"}}
    assert plan.done("s0", 2, 1.0) == []
    assert plan.done("s0", 2, 1.0) is None
    assert plan.finished


@pytest.mark.parametrize(
    ("reasons", "careful"),
    [
        (["decode_actor", "decode_actor"], [False, False, True]),
        (["decode_actor", "storage", "decode_actor"], [False, False, False, False]),
        (["storage", "storage"], [False, False, False]),
    ],
)
def test_shard_whose_decode_actor_dies_again_is_looked_at_carefully(reasons: list[str], careful: list[bool]) -> None:
    plan, found = schedule(1), []
    for now, reason in enumerate(reasons):
        one = take(plan, "a", 100.0 * now)
        found.append(one.careful)
        assert plan.failed("s0", one.attempt, Failure(Kind.INFRA, reason, "lost"), 100.0 * now)
    found.append(take(plan, "a", 1000.0).careful)
    assert found == careful


def test_suspects_run_alone_and_only_the_culprit_is_charged() -> None:
    plan = schedule(3, 2, 1)
    assert [take(plan, "a").shard for _ in range(2)] == ["s0", "s1"]
    assert plan.lost("a", "SIGSEGV", 0.0) == ["s0", "s1"]
    careful = []
    for now in (10.0, 20.0, 30.0):
        alone = take(plan, f"b{now}", now)
        assert alone.shard == "s0"
        careful.append(alone.careful)
        assert plan.next(f"b{now}", now) is None, "a suspect has the actor to itself"
        plan.lost(f"b{now}", "SIGSEGV", now)
        if now == 10.0:  # the other suspect proves its innocence in between
            assert take(plan, "c", now).shard == "s1"
            assert plan.done("s1", 2, now) == []
    assert careful == [False, True, True], "once it killed alone, its samples are decoded behind a wall"
    assert plan.quarantined()["s0"].reason == "crashed"
    assert take(plan, "d", 40.0).shard == "s2"
    assert plan.done("s2", 1, 41.0) == []
    assert plan.finished


def test_one_attempt_allowed_still_looks_before_giving_up() -> None:
    plan = Schedule([("s0", 1)], LimitsConfig(max_attempts=1, backoff_seconds=0))
    take(plan, "a")
    plan.lost("a", "SIGSEGV", 0.0)
    take(plan, "b")
    plan.lost("b", "SIGSEGV", 1.0)
    assert take(plan, "c", 2.0).careful


def test_preempted_node_casts_no_suspicion() -> None:
    plan = schedule(2, 1)
    take(plan, "a"), take(plan, "a")
    plan.lost("a", "preempted", 0.0, blame=False)
    assert [take(plan, "b").shard, take(plan, "b").shard] == ["s0", "s1"], "both at once, on one actor"


def test_stalled_attempt_is_charged_and_its_neighbours_are_not() -> None:
    plan = schedule(2, 1)
    take(plan, "a"), take(plan, "a")
    plan.progress("s1", 1, 5, now=90.0)
    plan.progress("s0", 1, 0, now=90.0)
    [(stuck, why)] = plan.stalled(now=101.0)
    assert (stuck.shard, stuck.attempt, stuck.actor) == ("s0", 1, "a")
    assert "no byte and no sample moved for 101 s" in why
    assert plan.lost("a", why, 101.0, stalled="s0") == ["s0", "s1"]
    assert take(plan, "b", 101.0).shard == "s1", "at once"
    assert plan.next("c", 101.0) is None
    again = take(plan, "c", 103.0)
    assert (again.shard, again.careful) == ("s0", True)


def test_deadline_of_an_attempt_that_moves_for_ever() -> None:
    plan = Schedule([("s0", 1)], LimitsConfig(shard_seconds=50))
    take(plan, "a")
    for now in range(0, 60, 10):
        plan.progress("s0", 1, now, float(now))
    assert [why for _, why in plan.stalled(51.0)] == ["not done after 51 s (limits.shard_seconds)"]


def paced(plan: Schedule, shards: int) -> None:
    """Finish some shards of size 10 in 10 seconds each."""
    for _ in range(shards):
        one = take(plan, "z", 0.0)
        plan.done(one.shard, one.attempt, 10.0)


def test_idle_actor_repeats_the_slowest_shard_and_the_loser_stops() -> None:
    plan = schedule(10, 10, 10, 10, 10)
    paced(plan, 3)
    slow, other = take(plan, "a", 10.0), take(plan, "b", 15.0)
    assert plan.next("c", 29.0) is None, "nobody is overdue"
    second = take(plan, "c", 31.0)
    assert (second.shard, second.attempt) == (slow.shard, 2)
    assert plan.next("d", 31.0) is None, "one repetition is enough"
    assert plan.next("a", 40.0) == Assignment(other.shard, 2, "a")
    losers = plan.done(slow.shard, 2, 41.0)
    assert losers == [Assignment(slow.shard, 1, "a")]
    assert plan.done(slow.shard, 1, 42.0) is None
    assert plan.count(State.DONE) == 4


@pytest.mark.parametrize("end", ["failed", "lost"])
def test_repetition_goes_on_when_the_first_attempt_ends(end: str) -> None:
    plan = schedule(10, 10, 10, 10)
    paced(plan, 3)
    slow = take(plan, "a", 10.0)
    assert take(plan, "b", 40.0).shard == slow.shard
    if end == "failed":
        assert plan.failed(slow.shard, 1, BAD, 41.0)
    else:
        plan.lost("a", "killed", 41.0)
    assert plan.running() == {slow.shard: {2: "b"}}
    assert plan.done(slow.shard, 2, 42.0) == []
    assert plan.finished


def test_small_shards_at_the_tail_are_not_repeated_for_their_fixed_cost() -> None:
    plan = schedule(1000, 1000, 1000, 1)
    paced(plan, 3)
    take(plan, "a", 10.0)
    assert plan.next("b", 25.0) is None, "0.01 s by size, but nothing ever took less than 10 s"
    assert take(plan, "b", 31.0).attempt == 2


def test_loser_that_hangs_holds_its_place_until_its_actor_is_ended() -> None:
    plan = schedule(10, 10, 10, 10)
    paced(plan, 3)
    slow = take(plan, "a", 10.0)
    take(plan, "b", 40.0)
    assert plan.done(slow.shard, 2, 41.0) == [Assignment(slow.shard, 1, "a")]
    [(stuck, _)] = plan.stalled(200.0)
    assert stuck.actor == "a"
    assert plan.lost("a", "hung", 200.0, stalled=slow.shard) == [slow.shard]
    assert plan.count(State.DONE) == 4


def test_cluster_that_flaps_spends_the_infra_budget() -> None:
    plan = schedule(1)
    for life in range(LIMITS.max_infra_failures):
        take(plan, f"a{life}")
        plan.lost(f"a{life}", "preempted", 0.0, blame=False)
    assert plan.quarantined()["s0"].reason == "actor_lost"


def test_speculation_switched_off() -> None:
    plan = Schedule([(f"s{i}", 10) for i in range(4)], LimitsConfig(speculate_factor=0))
    paced(plan, 3)
    take(plan, "a", 10.0)
    assert plan.next("b", 10_000.0) is None


def test_busy_actor_empties_itself_for_a_suspect() -> None:
    plan = schedule(6, 5, 4, 3, 2, 1)
    take(plan, "a")
    busy = take(plan, "b")
    take(plan, "d")
    plan.lost("a", "killed", 0.0)
    assert plan.next("b", 0.0) is None, "it must not take more while a suspect waits for an empty actor"
    assert take(plan, "d").shard == "s3", "one actor is enough for that"
    assert plan.next("b", 0.0) is None
    plan.done(busy.shard, busy.attempt, 0.0)
    assert take(plan, "b").shard == "s0"
    assert take(plan, "c").shard == "s4", "the others go on meanwhile"


class Cluster:
    """Actors that die, stall, fail and finish at random, driving one schedule."""

    def __init__(self, plan: Schedule, actors: int, slots: int, seed: int) -> None:
        self.plan, self.slots, self.rng = plan, slots, random.Random(seed)
        self.names = [f"a{i}" for i in range(actors)]
        self.born, self.now = actors, 0.0
        self.held: dict[str, list[Assignment]] = {name: [] for name in self.names}
        self.committed: dict[str, int] = {}

    def step(self) -> None:
        self.now += self.rng.random() * 20
        for name in self.names:
            while len(self.held[name]) < self.slots and (found := self.plan.next(name, self.now)):
                self.held[name].append(found)
        event, name = self.rng.random(), self.rng.choice(self.names)
        if event < 0.1:
            self.replace(name, stalled=None)
        elif event < 0.2:
            for stuck, _ in self.plan.stalled(self.now):
                if stuck.actor in self.names:
                    self.replace(stuck.actor, stalled=stuck.shard)
        elif self.held[name]:
            one = self.held[name].pop(self.rng.randrange(len(self.held[name])))
            if event < 0.5:
                self.plan.failed(one.shard, one.attempt, self.rng.choice([BAD, DOWN]), self.now)
            else:
                self.finish(one)

    def replace(self, name: str, stalled: str | None) -> None:
        self.plan.lost(name, "gone", self.now, stalled=stalled, blame=self.rng.random() < 0.7)
        self.names.remove(name)
        del self.held[name]
        self.names.append(f"a{self.born}")
        self.held[self.names[-1]] = []
        self.born += 1

    def finish(self, one: Assignment) -> None:
        losers = self.plan.done(one.shard, one.attempt, self.now)
        if losers is None:
            return
        self.committed[one.shard] = self.committed.get(one.shard, 0) + 1
        for loser in losers:  # some stop when told, some finish all the same, some go down with their actor
            if self.rng.random() < 0.5:
                self.held[loser.actor] = [held for held in self.held[loser.actor] if held.shard != loser.shard]
                assert not self.plan.failed(loser.shard, loser.attempt, DOWN, self.now)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(shards=st.integers(0, 12), actors=st.integers(1, 4), slots=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_any_interleaving_ends_with_every_shard_in_one_final_state(
    shards: int, actors: int, slots: int, seed: int
) -> None:
    rng = random.Random(seed)
    plan = Schedule([(f"s{i}", rng.randrange(1, 100)) for i in range(shards)], LIMITS, seed)
    cluster = Cluster(plan, actors, slots, seed)
    for _ in range(4000):
        if plan.finished:
            break
        cluster.step()
        assert sum(plan.count(state) for state in State) == shards
        assert plan.count(State.RUNNING) == len(plan.running())
    assert plan.finished
    assert set(cluster.committed.values()) <= {1}
    assert plan.count(State.DONE) == len(cluster.committed)
    assert len(cluster.committed) + len(plan.quarantined()) == shards
    assert not set(cluster.committed) & set(plan.quarantined())
