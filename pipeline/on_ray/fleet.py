"""The actors of a run: started, asked, listened to, ended."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.config import JobConfig
from pipeline.messages import ShardReport
from pipeline.on_ray.cluster import Placement, RemoteWorker
from pipeline.on_ray.feeders import Feeders
from pipeline.schedule import Assignment

PULSE_SECONDS = 1.0
PULSES_PER_SECOND = 100  # of all actors together; each costs the driver about 0.4 ms, and it has shards to give out
BESIDE_SHARDS = 3  # calls that an actor must answer while its shards run: pulse, cancel, and one to spare


class Phase(StrEnum):
    """How far an actor has come."""

    LOADING = "loading"
    LOADED = "loaded"
    STARTING = "starting"
    READY = "ready"


@dataclass(slots=True)
class Actor:
    """One actor as the driver knows it. Times are of `Fleet.now` (seconds)."""

    handle: Any
    phase: Phase = Phase.LOADING
    running: int = 0
    pulse_due: float = 0.0
    idle_since: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """A question that an actor was asked."""

    actor: str
    method: str
    assignment: Assignment | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Instead of an answer: the actor died, cannot be reached, or is of no use.

    Attributes:
        message: what happened, for the user.
        cause: the exception that was raised inside the actor, if it was one.
        with_node: it went down with its node, so its shards are above suspicion.
    """

    message: str
    cause: BaseException | None = None
    with_node: bool = False


class Fleet:
    """The actors of a run and the calls they have not answered yet.

    Args:
        config: of the job.
        placement: how many actors, and what each reserves.
        now: the clock of the run (seconds).
    """

    def __init__(self, config: JobConfig, placement: Placement, now: Callable[[], float] = time.monotonic) -> None:
        self._config, self.placement, self.now = config, placement, now
        self._calls: dict[Any, Call] = {}
        self._names = (f"actor-{number}" for number in itertools.count())
        self.actors: dict[str, Actor] = {}
        self._feeders = Feeders(config)
        self.most_at_work = 0

    def recruit(self) -> None:
        """Ask for one more actor; it loads the model as soon as the cluster has a place for it."""
        remote = ray.remote(RemoteWorker).options(
            num_cpus=self.placement.cpus,
            num_gpus=self.placement.gpus,
            max_restarts=0,  # an actor that died is replaced by the driver, which knows its shards
            max_concurrency=self._config.cluster.shards_in_flight + BESIDE_SHARDS,
        )
        name = next(self._names)
        self.actors[name] = Actor(remote.remote(self._config, self.placement.cpus, self.placement.device))
        self.call(name, "load")

    def call(self, name: str, method: str, *arguments: Any, assignment: Assignment | None = None) -> None:
        """Ask an actor; the answer comes out of `listen`."""
        handle, feeder = self.actors[name].handle, None
        if assignment is not None and not assignment.careful:
            feeder = self._feeders.take(assignment)
        if feeder is not None:
            ref = handle.tokenize_fed.remote(*arguments, feeder)
        else:
            ref = handle.call.remote(method, *arguments)
        self._calls[ref] = Call(name, method, assignment)

    def feel_pulses(self) -> None:
        """Ask every ready actor how far it is: about once a second, in large fleets less often."""
        now = self.now()
        for name, actor in self.actors.items():
            if actor.phase is Phase.READY and now >= actor.pulse_due:
                actor.pulse_due = float("inf")  # until it answers
                self.call(name, "pulse")

    def listen(self, seconds: float) -> Iterator[tuple[Call, Any]]:
        """What has been answered, or is within `seconds`: the calls with their answers, or with `Lost`."""
        if not self._calls:
            time.sleep(seconds)
            return
        ray.wait(list(self._calls), timeout=seconds)
        ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for ref in ready:
            call = self._calls.pop(ref)
            if call.actor in self.actors:  # else it was dismissed; its shards are requeued already
                answer = _answer(ref)
                self._note(call, answer)
                yield call, answer

    def dismiss(self, name: str) -> None:
        """End an actor, if it still lives, and forget it."""
        self._feeders.abandon(name)
        ray.kill(self.actors.pop(name).handle)

    def dismiss_all(self) -> None:
        """End all actors."""
        for name in list(self.actors):
            self.dismiss(name)
        self._feeders.dismiss_all()

    def at_work(self) -> int:
        """How many actors are ready for shards."""
        return sum(actor.phase is Phase.READY for actor in self.actors.values())

    def _note(self, call: Call, answer: Any) -> None:
        """Keep the actor's own state up to date."""
        actor, now = self.actors[call.actor], self.now()
        if call.method == "pulse":
            actor.pulse_due = now + max(PULSE_SECONDS, len(self.actors) / PULSES_PER_SECOND)
        if isinstance(answer, Lost):
            return
        if call.method == "load":
            actor.phase = Phase.LOADED
        elif call.method == "start":
            actor.phase, actor.idle_since = Phase.READY, now
            self.most_at_work = max(self.most_at_work, self.at_work())
            self._feeders.recruit()  # not before: an actor with a GPU needs the cores beside it
        elif call.method == "tokenize":
            actor.running -= 1
            self._feeders.give_back(call.assignment, emptied=isinstance(answer, ShardReport))


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        return Lost(str(error.cause or error), error.cause)
    except RayError as error:  # dead, out of memory, unreachable, cannot be placed: all the same to its shards
        preempted = bool(getattr(error, "preempted", False))
        return Lost(str(error), with_node=preempted or "node has died" in str(error))
