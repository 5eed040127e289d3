"""A fleet on virtual time: actors that draw how long things take, on nodes that come and go.

It stands in the place of `pipeline.on_ray.fleet.Fleet`; everything above it is the driver and the schedule of a run. An
attempt opens its stream, moves its images through its actor's device, which attempts share, and finishes its part. What
the driver itself spends on Ray passes on the same clock.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from pipeline.commit import Outcome
from pipeline.config import JobConfig
from pipeline.encoding import Precision, Trial
from pipeline.messages import Calibration, Identity, Pulse, ShardReport, Task
from pipeline.meter import Reading
from pipeline.on_ray.cluster import Placement
from pipeline.on_ray.fleet import Actor, Call, Fleet, Lost
from pipeline.qa.evidence import QaReport, pack
from pipeline.schedule import Assignment, Failure, Kind
from pipeline.tokens.schema import Counts, TokenSpec
from tests.benchmarks.scaling.site import Lot, Site

ROUND_TRIP = 0.002  # seconds of a call that does nothing
MEASURE_SECONDS = 10.0  # calibration of the first actor
IDENTITY = Identity("weights", {"block_out_channels": [1, 1, 1, 1, 1]}, TokenSpec(16_384, 16, 16), "pillow-13")
QA = QaReport(  # that no gate minds
    fingerprint="",
    shard={"id": "sim", "url": "sim"},
    counts=Counts(1, 1, 1, 0),
    rejects_by_reason={},
    codebook_size=4,
    packed=pack(np.full(4, 6)),
    out_of_range=0,
    constant_grids=0,
    duplicate_grids=0,
    split_divergence=0.0,
    sizes={},
    aspects={},
    psnr=None,
    ssim=None,
)


@dataclass(slots=True)
class _Work:
    """An attempt; `left` images of device time are before it."""

    call: Call
    images: int
    left: float
    limit: float  # images/s that its stream gives
    fails_at: float | None
    streaming: bool = False
    done: float = 0.0  # images that went through


@dataclass(slots=True)
class _Machine:
    """The place of one actor."""

    node: int
    placed: float
    rate: float  # images/s
    ready: bool = False
    since: float = 0.0  # when the work in progress was brought up to date
    version: int = 0
    works: dict[tuple[str, int], _Work] = field(default_factory=dict)
    images: int = 0


@dataclass(slots=True)
class Bill:
    """Where GPU-seconds went.

    Attributes:
        starting: from the placement of an actor until it was ready.
        repeated: device time, in seconds, of attempts whose work was not published.
        attempts, lost: attempts begun; actors lost.
    """

    starting: float = 0.0
    repeated: float = 0.0
    attempts: int = 0
    lost: int = 0


class World(Fleet):
    """The fleet of a simulated site.

    Args:
        config: of the job.
        site: what is simulated.
        images: of each shard, by id.
    """

    def __init__(self, config: JobConfig, site: Site, images: dict[str, int]) -> None:
        self._clock, self._debt = 0.0, 0.0
        super().__init__(config, Placement(site.gpus, site.gpus, 1, 1.0), lambda: self._clock)
        self._site, self._images, self._lot = site, images, Lot(site)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order, self._pending = count(), 0
        self._answers: deque[tuple[Call, Any]] = deque()
        self._machines: dict[str, _Machine] = {}
        self._unplaced: deque[str] = deque()
        self._speeds = [self._lot.speed() for _ in range(site.nodes)]
        self._free = [site.gpus_per_node] * site.nodes
        self.bill, self.commits = Bill(), list[float]()
        self.published: set[str] = set()
        self.busy = 0.0  # seconds of the driver
        self.last_begun = 0.0  # the first attempt of the last shard
        for node in range(site.nodes):
            self._at(self._lot.preemption(), lambda node=node: self._preempt(node))

    # --- what the driver calls ---

    def recruit(self) -> None:
        name = next(self._names)
        self.actors[name] = Actor(None)
        self._unplaced.append(name)
        self._place()

    def call(self, name: str, method: str, *arguments: Any, assignment: Assignment | None = None) -> None:
        self._debt += self._site.costs.call
        self._pending += 1
        call = Call(name, method, assignment)
        if method == "tokenize":
            self._begin(call, arguments[0])
        elif method == "cancel":
            self._cancel(call, arguments)
        elif method == "pulse":
            self._after(ROUND_TRIP, lambda: self._answer(call, self._pulse(name)))
        elif method == "measure":
            self._after(MEASURE_SECONDS, lambda: self._answer(call, self._calibration()))
        elif method == "start":
            self._after(ROUND_TRIP, lambda: self._ready(call))

    def listen(self, seconds: float) -> Iterator[tuple[Call, Any]]:
        costs = self._site.costs
        deadline = self._clock + seconds
        spent, self._debt = self._debt + costs.waiting * self._pending + costs.actor * len(self.actors), 0.0
        self.busy += spent
        self._pass(self._clock + spent)
        while not self._answers and self._events and self._events[0][0] <= deadline:
            self._pass(self._events[0][0])
        if not self._answers:
            self._pass(max(self._clock, deadline))
        for _ in range(len(self._answers)):
            call, answer = self._answers.popleft()
            self._debt += costs.answer
            if call.actor in self.actors:
                self._note(call, answer)
                yield call, answer

    def dismiss(self, name: str) -> None:
        del self.actors[name]
        if name in self._machines:
            self._free[self._machines[name].node] += 1
            self._leave(name)
            self._place()
        elif name in self._unplaced:
            self._unplaced.remove(name)

    # --- time ---

    def _at(self, when: float, do: Callable[[], None]) -> None:
        if when < float("inf"):
            heapq.heappush(self._events, (when, next(self._order), do))

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        self._at(self._clock + seconds, do)

    def _pass(self, until: float) -> None:
        """Let everything happen that happens until then, each at its time."""
        while self._events and self._events[0][0] <= until:
            when, _, do = heapq.heappop(self._events)
            self._clock = max(self._clock, when)
            do()
        self._clock = max(self._clock, until)

    def _answer(self, call: Call, answer: Any) -> None:
        self._pending -= 1
        self._answers.append((call, answer))

    # --- actors and nodes ---

    def _place(self) -> None:
        """Put waiting actors onto free GPUs."""
        for node in range(len(self._free)):
            while self._free[node] > 0 and self._unplaced:
                self._free[node] -= 1
                self._settle(self._unplaced.popleft(), node)

    def _settle(self, name: str, node: int) -> None:
        self._machines[name] = _Machine(node, self._clock, self._site.rate * self._speeds[node])
        call = Call(name, "load")
        self._pending += 1
        self._after(self._site.warm_up + self._lot.of(self._site.times.load), lambda: self._answer(call, IDENTITY))
        self._after(self._lot.death(), lambda: self._die(name))

    def _ready(self, call: Call) -> None:
        machine = self._machines.get(call.actor)
        if machine is not None:
            machine.ready = True
            self.bill.starting += self._clock - machine.placed
        self._answer(call, None)

    def _die(self, name: str) -> None:
        if name in self._machines:
            self._free[self._machines[name].node] += 1
            self._lose(name, Lost("the process was killed"))

    def _preempt(self, node: int) -> None:
        for name in [name for name, machine in self._machines.items() if machine.node == node]:
            self._lose(name, Lost("the node has died", with_node=True))
        self._free[node] = -self._site.gpus_per_node  # no place at all
        self._after(self._lot.away(), lambda: self._return(node))

    def _return(self, node: int) -> None:
        self._free[node] = self._site.gpus_per_node
        self._speeds[node] = self._lot.speed()
        self._place()
        self._after(self._lot.preemption(), lambda: self._preempt(node))

    def _lose(self, name: str, lost: Lost) -> None:
        self._leave(name)
        self.bill.lost += 1
        self._pending += 1
        self._answer(Call(name, "pulse"), lost)  # the first of its calls that is heard of; the others are not needed

    def _leave(self, name: str) -> None:
        machine = self._machines.pop(name)
        self._bring_up(machine)
        self.bill.starting += 0.0 if machine.ready else self._clock - machine.placed
        for work in machine.works.values():
            self.bill.repeated += work.done / self._site.rate

    # --- attempts ---

    def _begin(self, call: Call, task: Task) -> None:
        lot, images = self._lot, self._images[task.shard.id]
        self.bill.attempts += 1
        self.last_begun = self._clock if task.attempt == 1 else self.last_begun
        work = _Work(call, images, images * lot.of(self._site.times.work), lot.stream(), lot.failure())
        if work.fails_at is not None:
            work.left *= work.fails_at
        machine = self._machines.get(call.actor)
        if machine is None:
            return  # it died before it heard
        machine.works[task.shard.id, task.attempt] = work
        self._after(lot.of(self._site.times.open), lambda: self._stream(call.actor, work))

    def _stream(self, name: str, work: _Work) -> None:
        machine = self._machines.get(name)
        if machine is not None:
            self._bring_up(machine)
            work.streaming = True
            self._share(name, machine)

    def _bring_up(self, machine: _Machine) -> None:
        """Move the images that went through since the last time."""
        passed, machine.since = self._clock - machine.since, self._clock
        for work, rate in _rates(machine):
            moved = min(work.left, passed * rate)
            work.left -= moved
            work.done += moved

    def _share(self, name: str, machine: _Machine) -> None:
        """The device is shared anew; wake up when the first attempt is through."""
        machine.version += 1
        version = machine.version
        ends = [work.left / rate for work, rate in _rates(machine)]
        if ends:
            self._after(max(0.0, min(ends)), lambda: self._through(name, version))

    def _through(self, name: str, version: int) -> None:
        machine = self._machines.get(name)
        if machine is None or machine.version != version:
            return
        self._bring_up(machine)
        for key, work in list(machine.works.items()):
            if work.streaming and work.left < 1e-6:
                work.streaming = False
                if work.fails_at is not None:
                    self._end(name, key, Failure(Kind.INFRA, "storage", "503"))
                else:
                    self._after(self._lot.of(self._site.times.finish), lambda key=key: self._publish(name, key))
        self._share(name, machine)

    def _publish(self, name: str, key: tuple[str, int]) -> None:
        machine = self._machines.get(name)
        if machine is None or key not in machine.works:
            return
        images = machine.works[key].images
        machine.images += images
        first = key[0] not in self.published
        if first:
            self.published.add(key[0])
            self.commits.append(self._clock)
        outcome = Outcome.DONE if first else Outcome.LOST
        self._end(name, key, ShardReport(Counts(images, images, images, 0), outcome, qa=QA), repeated=not first)

    def _end(self, name: str, key: tuple[str, int], answer: ShardReport | Failure, *, repeated: bool = True) -> None:
        work = self._machines[name].works.pop(key)
        if repeated:
            self.bill.repeated += work.done / self._site.rate
        self._after(ROUND_TRIP, lambda: self._answer(work.call, answer))

    def _cancel(self, call: Call, key: Any) -> None:
        machine = self._machines.get(call.actor)
        self._answer(call, None)
        if machine is not None and tuple(key) in machine.works:
            self._bring_up(machine)
            self._end(call.actor, tuple(key), Failure(Kind.INFRA, "cancelled", "another attempt committed this shard"))
            self._share(call.actor, machine)

    def _pulse(self, name: str) -> Pulse:
        machine = self._machines.get(name)
        if machine is None:
            return Pulse(Reading(), [])
        self._bring_up(machine)
        moved = [(shard, attempt, int(work.done)) for (shard, attempt), work in machine.works.items()]
        return Pulse(Reading(images=machine.images, bytes_read=machine.images * self._site.image_bytes), moved)

    def _calibration(self) -> Calibration:
        trials = (Trial(Precision.FP16, 1.0, self._site.rate),)
        return Calibration("cuda", 64, {64: self._site.rate}, 1e6, 32, {}, trials, Precision.FP16)


def _rates(machine: _Machine) -> list[tuple[_Work, float]]:
    """Images/s of each attempt that streams: equal shares of the device, and what slow streams leave of theirs."""
    left, rates = machine.rate, []
    waiting = sorted((work for work in machine.works.values() if work.streaming), key=lambda work: work.limit)
    for number, work in enumerate(waiting):
        rate = min(work.limit, left / (len(waiting) - number))
        left -= rate
        rates.append((work, rate))
    return rates
