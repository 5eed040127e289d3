"""Who does which shard when, and what a failure costs: a pure state machine, without clock, threads or Ray.

The driver tells it what happened (`done`, `failed`, `lost`) and asks what to do (`next`). Every report names its
attempt; a report of an attempt that is no longer the shard's current one is stale and changes nothing.

    waiting -> running -> done
       ^          |
       |          +-> (failed or lost) -> waiting, later -> ... -> quarantined

Failures are of three kinds. TASK: this shard is bad, so its own budget is charged. INFRA: the store, a node or an actor
failed, which costs the shard nothing until a second, larger budget is spent. FATAL: the whole run must stop.

An actor that dies takes all its shards in flight with it, and which of them killed it is unknown. They become
*suspects*: each is tried again alone on an actor, so that the next death has one culprit.
"""

import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ShardFault


class LimitsConfig(BaseModel):
    """When to try again, when to give up, when to stop."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_attempts: int = Field(3, ge=1, description="attempts at a shard before it is quarantined")
    max_infra_failures: int = Field(20, ge=1, description="failures of store, node or actor that a shard may meet")
    backoff_seconds: float = Field(
        1.0, ge=0, description="pause before the second attempt; doubles each time (seconds)"
    )
    max_backoff_seconds: float = Field(60.0, ge=0, description="longest pause between two attempts (seconds)")
    max_reject_fraction: float = Field(
        0.1, ge=0, le=1, description="stop when more of the samples than this are rejected (fraction)"
    )
    stall_seconds: float = Field(
        300.0, gt=0, description="no sample finished anywhere for so long is an error (seconds)"
    )
    drain_seconds: float = Field(
        60.0, ge=0, description="after Ctrl-C or SIGTERM, how long running shards may take to finish (seconds)"
    )


class Kind(StrEnum):
    """Whose fault a failure is."""

    TASK = "task"
    INFRA = "infra"
    FATAL = "fatal"


class State(StrEnum):
    """Where a shard is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended without a part. `reason` is one word, `message` a sentence for the user."""

    kind: Kind
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt at one shard on one actor."""

    shard: str
    attempt: int
    actor: str


@dataclass(slots=True)
class _Entry:
    size: int
    state: State = State.WAITING
    attempt: int = 0
    actor: str | None = None
    suspect: bool = False
    task_failures: int = 0
    infra_failures: int = 0
    last: Failure | None = None


@dataclass(slots=True)
class _Load:
    shards: set[str] = field(default_factory=set)
    isolated: bool = False


class Schedule:
    """The state of all shards of a run.

    Args:
        shards: id and size in bytes of every shard to do; the largest go first, so that the tail is short.
        limits: budgets and pauses.
        seed: of the jitter.
    """

    def __init__(self, shards: Iterable[tuple[str, int]], limits: LimitsConfig, seed: int = 0) -> None:
        self._entries = {shard: _Entry(size) for shard, size in shards}
        self._limits = limits
        self._random = random.Random(seed)  # noqa: S311 - jitter, not cryptography
        self._ready = [(-entry.size, shard) for shard, entry in self._entries.items()]
        heapq.heapify(self._ready)
        self._later: list[tuple[float, str]] = []
        self._suspects: list[str] = []
        self._actors: dict[str, _Load] = {}
        self._tally = dict.fromkeys(State, 0) | {State.WAITING: len(self._entries)}

    # --- what the driver asks ---

    def next(self, actor: str, now: float) -> Assignment | None:
        """The next attempt for an actor with a free slot, or None if it should wait.

        Args:
            actor: its name; an unknown one joins.
            now: seconds, of any monotonic clock.
        """
        load = self._actors.setdefault(actor, _Load())
        self._wake(now)
        if load.isolated:
            return None
        if self._suspects:
            if not load.shards:
                load.isolated = True
                return self._assign(self._suspects.pop(0), actor)
            if not any(other.isolated for other in self._actors.values()):
                return None  # this actor empties itself, to take a suspect alone
        if not self._ready:
            return None
        return self._assign(heapq.heappop(self._ready)[1], actor)

    def state(self, shard: str) -> State:
        """Where a shard is."""
        return self._entries[shard].state

    def count(self, state: State) -> int:
        """How many shards are in a state."""
        return self._tally[state]

    @property
    def finished(self) -> bool:
        """Whether every shard is in a final state."""
        return self._tally[State.WAITING] == self._tally[State.RUNNING] == 0

    def quarantined(self) -> dict[str, Failure]:
        """The shards given up, each with its last failure."""
        return {
            shard: entry.last
            for shard, entry in self._entries.items()
            if entry.state is State.QUARANTINED and entry.last is not None
        }

    def running(self) -> dict[str, tuple[int, str]]:
        """The running shards: id -> (attempt, actor)."""
        return {
            shard: (self._entries[shard].attempt, actor)
            for actor, load in self._actors.items()
            for shard in load.shards
        }

    # --- what the driver tells ---

    def done(self, shard: str, attempt: int) -> bool:
        """An attempt committed (or found the shard committed). False if the report is stale."""
        entry = self._entries[shard]
        if not self._current(entry, attempt):
            return False
        self._release(shard)
        self._move(entry, State.DONE)
        return True

    def failed(self, shard: str, attempt: int, failure: Failure, now: float) -> bool:
        """An attempt failed: retry later, or quarantine. False if the report is stale."""
        entry = self._entries[shard]
        if not self._current(entry, attempt):
            return False
        self._release(shard)
        entry.last = failure
        if failure.kind is Kind.INFRA:
            entry.infra_failures += 1
        else:
            entry.task_failures += 1
        if entry.task_failures >= self._limits.max_attempts or entry.infra_failures >= self._limits.max_infra_failures:
            self._move(entry, State.QUARANTINED)
            return True
        self._move(entry, State.WAITING)
        heapq.heappush(self._later, (now + self._pause(entry), shard))
        return True

    def lost(self, actor: str, message: str, now: float) -> list[str]:
        """An actor died or vanished. Its shards wait again; a shard that was alone on it is charged with the death."""
        load = self._actors.pop(actor, _Load())
        shards = sorted(load.shards)
        for shard in shards:
            entry = self._entries[shard]
            if load.isolated:
                failure = Failure(Kind.TASK, ShardFault.CRASHED.value, message)
                self._actors[actor] = load  # so that `failed` can release it
                self.failed(shard, entry.attempt, failure, now)
                del self._actors[actor]
            else:
                entry.infra_failures += 1
                entry.last = Failure(Kind.INFRA, "actor_lost", message)
                entry.actor = None
                self._move(entry, State.WAITING)
                self._suspects.append(shard)
            entry.suspect = True
        return shards

    # --- inside ---

    def _assign(self, shard: str, actor: str) -> Assignment:
        entry = self._entries[shard]
        entry.attempt += 1
        entry.actor = actor
        self._actors[actor].shards.add(shard)
        self._move(entry, State.RUNNING)
        return Assignment(shard, entry.attempt, actor)

    def _release(self, shard: str) -> None:
        entry = self._entries[shard]
        assert entry.actor is not None
        load = self._actors[entry.actor]
        load.shards.discard(shard)
        load.isolated = False
        entry.actor = None

    def _current(self, entry: _Entry, attempt: int) -> bool:
        return entry.state is State.RUNNING and entry.attempt == attempt

    def _move(self, entry: _Entry, state: State) -> None:
        self._tally[entry.state] -= 1
        self._tally[state] += 1
        entry.state = state

    def _wake(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            shard = heapq.heappop(self._later)[1]
            if self._entries[shard].suspect:
                self._suspects.append(shard)
            else:
                heapq.heappush(self._ready, (-self._entries[shard].size, shard))

    def _pause(self, entry: _Entry) -> float:
        failures = entry.task_failures + entry.infra_failures
        longest = min(self._limits.max_backoff_seconds, self._limits.backoff_seconds * 2.0 ** (failures - 1))
        return longest * self._random.uniform(0.5, 1.0)
