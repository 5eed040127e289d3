"""Who does which shard when, and what a failure costs: a pure state machine, without clock, threads or Ray.

The driver tells it what happened (`done`, `failed`, `lost`, `progress`) and asks what to do (`next`, `stalled`). Every
report names its attempt; a report of an attempt that is no longer running is stale and changes nothing.

    waiting -> running -> done
       ^          |
       |          +-> (all attempts failed or lost) -> waiting, later -> ... -> quarantined

Failures are of three kinds. TASK: this shard is bad, so its own budget is charged. INFRA: the store, a node or an actor
failed, which costs the shard nothing until a second, larger budget is spent. FATAL: the whole run must stop.

An actor that dies takes all its shards in flight with it, and which of them killed it is unknown. They become
*suspects*: each is tried again alone on an actor, so that the next death has one culprit. A shard that killed or hung
alone is tried *carefully* from then on: its samples are decoded one by one in a child process, so that the poison is
found by name. So is one whose decode actor died twice in a row: that decodes no other shard at the same time.

At the tail, an idle actor takes a second attempt at a shard that runs far longer than shards of its size did. That is
safe because the first commit wins; the loser is told to stop.
"""

import heapq
import random
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.errors import ShardFault
from pipeline.limits import LimitsConfig

PACES_KEPT = 200  # finished shards whose pace says what is slow
MIN_PACES = 3  # with fewer nobody knows what is slow
LOOK_SECONDS = 1.0  # between two looks for slow shards: at the tail all idle actors of a large fleet ask all the time
LOST_DECODER = "decode_actor"  # reason of a failure: the decode actor that fed the attempt is gone
MIN_OVERDUE_SECONDS = 5.0  # below that a repetition costs more than it can save


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
    """One attempt at one shard on one actor; `careful` isolates every sample's decoding."""

    shard: str
    attempt: int
    actor: str
    careful: bool = False


@dataclass(slots=True)
class _Running:
    actor: str
    started: float
    moved: float
    progress: int = 0


@dataclass(slots=True)
class _Entry:
    size: int
    state: State = State.WAITING
    attempts: int = 0
    running: dict[int, _Running] = field(default_factory=dict)
    suspect: bool = False
    careful: bool = False
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
        canaries: so many begin before the largest, of the middle size: a fleet waits for them, and they should be like
            the others.
        largest_first: False begins them as they come; to measure what the order is worth.
    """

    def __init__(
        self,
        shards: Iterable[tuple[str, int]],
        limits: LimitsConfig,
        seed: int = 0,
        *,
        canaries: int = 0,
        largest_first: bool = True,
    ) -> None:
        self._entries = {shard: _Entry(size) for shard, size in shards}
        self._limits, self._largest_first = limits, largest_first
        middle = statistics.median_low([entry.size for entry in self._entries.values()] or [0])
        like = heapq.nsmallest(canaries, self._entries, key=lambda name: (abs(self._entries[name].size - middle), name))
        self._canaries = frozenset(like)
        self._random = random.Random(seed)  # noqa: S311 - jitter, not cryptography
        self._ready = [self._place(shard) for shard in self._entries]
        heapq.heapify(self._ready)
        self._later: list[tuple[float, str]] = []
        self._suspects: deque[str] = deque()
        self._actors: dict[str, _Load] = {}
        self._emptying: str | None = None  # the actor that takes nothing more until it can take a suspect alone
        self._paces: deque[float] = deque(maxlen=PACES_KEPT)  # seconds per byte
        self._looked, self._overdue = float("-inf"), list[str]()  # as of the last look
        self._quickest = float("inf")  # seconds: what even the smallest shard takes
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
                self._emptying = None
                return self._assign(self._suspects.popleft(), actor, now)
            if self._emptying in (None, actor) and not any(other.isolated for other in self._actors.values()):
                self._emptying = actor
                return None
        if self._ready:
            return self._assign(heapq.heappop(self._ready)[-1], actor, now)
        slow = self._slowest(actor, now)
        return self._assign(slow, actor, now) if slow else None

    def by_load(self, actors: Iterable[str]) -> list[str]:
        """Actors in the order in which they should be asked for: those that hold the fewest bytes first."""

        def held(actor: str) -> int:
            load = self._actors.get(actor)
            return sum(self._entries[shard].size for shard in load.shards) if load else 0

        return sorted(actors, key=held)

    def stalled(self, now: float) -> list[tuple[Assignment, str]]:
        """The attempts that stopped moving, or run beyond their deadline, each with what is wrong in words."""
        found = []
        for shard, entry in self._running_entries():
            for attempt, one in entry.running.items():
                idle, lasted, longest = now - one.moved, now - one.started, self._limits.shard_seconds
                if idle > self._limits.stall_seconds:
                    why = f"no byte and no sample moved for {idle:.0f} s (limits.stall_seconds)"
                elif longest is not None and lasted > longest:
                    why = f"not done after {lasted:.0f} s (limits.shard_seconds)"
                else:
                    continue
                found.append((Assignment(shard, attempt, one.actor, entry.careful), why))
        return found

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

    def pausing(self, now: float) -> bool:
        """Whether all that is left to do waits for the end of its pause."""
        running, waiting = self._tally[State.RUNNING], self._tally[State.WAITING]
        return not running and 0 < waiting == len(self._later) and self._later[0][0] > now

    def quarantined(self) -> dict[str, Failure]:
        """The shards given up, each with its last failure."""
        given_up = ((shard, entry.last) for shard, entry in self._entries.items() if entry.state is State.QUARANTINED)
        return {shard: last for shard, last in given_up if last is not None}

    def running(self) -> dict[str, dict[int, str]]:
        """The running shards: id -> {attempt: actor}."""
        return {
            shard: {attempt: one.actor for attempt, one in entry.running.items()}
            for shard, entry in self._running_entries()
            if entry.state is State.RUNNING
        }

    # --- what the driver tells ---

    def progress(self, shard: str, attempt: int, moved: int, now: float) -> None:
        """An attempt's count of bytes and samples; only a change is a sign of life."""
        one = self._entries[shard].running.get(attempt)
        if one is not None and moved != one.progress:
            one.progress, one.moved = moved, now

    def done(self, shard: str, attempt: int, now: float) -> list[Assignment] | None:
        """An attempt committed (or found the shard committed).

        Returns:
            Other attempts at the shard, which should stop now (they hold their place until they answer); None if the
            report is stale.
        """
        entry = self._entries[shard]
        if attempt in entry.running:
            seconds = now - entry.running[attempt].started
            self._paces.append(seconds / max(1, entry.size))
            self._quickest = min(self._quickest, seconds)
        if not self._ended(shard, attempt):
            return None
        self._move(entry, State.DONE)
        return [Assignment(shard, other, one.actor) for other, one in entry.running.items()]

    def failed(self, shard: str, attempt: int, failure: Failure, now: float) -> bool:
        """An attempt failed: retry later, or quarantine. False if the report is stale."""
        entry = self._entries[shard]
        if not self._ended(shard, attempt):
            return False
        again = entry.last is not None and entry.last.reason == failure.reason
        entry.last = failure
        if failure.kind is Kind.INFRA:
            entry.infra_failures += 1
        else:
            entry.task_failures += 1
        if entry.running:
            return True  # another attempt goes on
        spent = entry.task_failures >= self._limits.max_attempts
        if failure.reason in (ShardFault.CRASHED, ShardFault.STALLED) and not entry.careful:
            entry.careful, spent = True, False  # it may have one poison sample: look before giving it up
        if failure.reason == LOST_DECODER and again:
            entry.careful = True  # once may have been the node
        if spent or entry.infra_failures >= self._limits.max_infra_failures:
            self._move(entry, State.QUARANTINED)
            return True
        self._move(entry, State.WAITING)
        heapq.heappush(self._later, (now + self._pause(entry), shard))
        return True

    def lost(
        self, actor: str, message: str, now: float, *, stalled: str | None = None, blame: bool = True
    ) -> list[str]:
        """An actor died, vanished or was ended. Its shards wait again; returns them.

        Args:
            actor: its name.
            message: what happened, for the user.
            now: seconds.
            stalled: the shard for whose sake the actor was ended; it alone is charged.
            blame: False if the shards cannot have caused it (the node was preempted).
        """
        load = self._actors.get(actor, _Load())
        shards = sorted(load.shards)
        if self._emptying == actor:
            self._emptying = None
        for shard in shards:
            entry = self._entries[shard]
            attempt = next(number for number, one in entry.running.items() if one.actor == actor)
            if entry.state is State.DONE:
                del entry.running[attempt]
            elif shard == stalled:
                entry.suspect = True
                self.failed(shard, attempt, Failure(Kind.TASK, ShardFault.STALLED.value, message), now)
            elif load.isolated and blame:
                entry.suspect = True
                self.failed(shard, attempt, Failure(Kind.TASK, ShardFault.CRASHED.value, message), now)
            else:
                self._put_back(shard, attempt, message, suspect=blame and stalled is None)
        self._actors.pop(actor, None)
        return shards

    # --- inside ---

    def _put_back(self, shard: str, attempt: int, message: str, *, suspect: bool) -> None:
        """An attempt ended through no proven fault of the shard: it waits again, at once."""
        entry = self._entries[shard]
        del entry.running[attempt]
        entry.last = Failure(Kind.INFRA, "actor_lost", message)
        entry.infra_failures += 1
        entry.suspect |= suspect
        if entry.running:
            return
        if entry.infra_failures >= self._limits.max_infra_failures:
            self._move(entry, State.QUARANTINED)
            return
        self._move(entry, State.WAITING)
        if entry.suspect:
            self._suspects.append(shard)
        else:
            heapq.heappush(self._ready, self._place(shard))

    def _place(self, shard: str) -> tuple[bool, int, str]:
        """In the queue."""
        return shard not in self._canaries, (-self._entries[shard].size if self._largest_first else 0), shard

    def _assign(self, shard: str, actor: str, now: float) -> Assignment:
        entry = self._entries[shard]
        entry.attempts += 1
        entry.running[entry.attempts] = _Running(actor, now, now)
        self._actors[actor].shards.add(shard)
        if entry.state is not State.RUNNING:
            self._move(entry, State.RUNNING)
        return Assignment(shard, entry.attempts, actor, entry.careful)

    def _ended(self, shard: str, attempt: int) -> bool:
        """Free the place of an attempt that answered. False if nobody waits for its answer any more."""
        entry = self._entries[shard]
        one = entry.running.pop(attempt, None)
        if one is None:
            return False
        load = self._actors[one.actor]
        load.shards.discard(shard)
        load.isolated = False
        return entry.state is State.RUNNING

    def _slowest(self, actor: str, now: float) -> str | None:
        """The shard most overdue for its size that runs once, elsewhere, in company; None if none is overdue."""
        if now - self._looked >= LOOK_SECONDS:
            self._looked, self._overdue = now, self._find_overdue(now)
        for shard in self._overdue:
            if self._runs_alone(self._entries[shard]) not in (None, actor):
                self._overdue.remove(shard)
                return shard
        return None

    def _find_overdue(self, now: float) -> list[str]:
        """The shards that one attempt holds for longer than is usual, the most overdue first."""
        if not self._limits.speculate_factor or len(self._paces) < MIN_PACES:
            return []
        pace = statistics.median(self._paces)
        found: list[tuple[float, str]] = []
        for shard, entry in self._running_entries():
            if self._runs_alone(entry) is None or entry.suspect:
                continue
            lasted = now - next(iter(entry.running.values())).started
            times = lasted / max(1e-9, pace * entry.size, self._quickest)
            if lasted > MIN_OVERDUE_SECONDS and times > self._limits.speculate_factor:
                found.append((-times, shard))
        return [shard for _, shard in sorted(found)]

    @staticmethod
    def _runs_alone(entry: _Entry) -> str | None:
        """The one actor that works on a shard; None if there are more or none, or the shard is done."""
        if entry.state is not State.RUNNING or len(entry.running) != 1:
            return None
        return next(iter(entry.running.values())).actor

    def _running_entries(self) -> list[tuple[str, _Entry]]:
        shards = dict.fromkeys(shard for load in self._actors.values() for shard in sorted(load.shards))
        return [(shard, self._entries[shard]) for shard in shards]

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
                heapq.heappush(self._ready, self._place(shard))

    def _pause(self, entry: _Entry) -> float:
        failures = entry.task_failures + entry.infra_failures
        longest = min(self._limits.max_backoff_seconds, self._limits.backoff_seconds * 2.0 ** (failures - 1))
        return longest * self._random.uniform(0.5, 1.0)
