"""What is simulated: GPUs, shards, the times that stages take, how often what fails. Every figure has its source."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

MEASURED = Path(__file__).with_name("measured.json")  # by `python -m tests.benchmarks.scaling.measure`
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Times:
    """What one attempt takes, and how it varies: values measured on this project's own stages, drawn with replacement.

    Attributes:
        work: seconds per image of a shard in decode and encode, over the median of all shards (ratios).
        open: seconds from the beginning of an attempt to its first sample.
        finish: seconds after the last image: write, check, QA, publish.
        load: seconds that an actor takes to load the model and get ready.
    """

    work: Sequence[float]
    open: Sequence[float]
    finish: Sequence[float]
    load: Sequence[float]

    @classmethod
    def measured(cls) -> "Times":
        """Those that lie beside this file."""
        found = json.loads(MEASURED.read_text())
        return cls(**{name: found[name] for name in ("work", "open", "finish", "load")})


@dataclass(frozen=True, slots=True)
class Rates:
    """How often what goes wrong. The defaults are the calm of a cluster of one's own.

    Attributes:
        deaths: of an actor, per hour at work. Meta's 16,384 GPUs had 419 unexpected stops in 54 days (2407.21783), one
            per GPU in 50,700 hours; software of ours may be worse, so ten times that.
        preemptions: of a node, per hour; 0.05 is a quiet spot market, 0.5 a bad one.
        away: seconds until a preempted node comes back, on average (exponential).
        failures: attempts that the store fails (fraction).
        slow_streams: attempts whose stream gives a tenth of what it should (fraction).
        slow_nodes: nodes whose GPUs and cores work at half speed (fraction).
    """

    deaths: float = 10 / 50_700
    preemptions: float = 0.0
    away: float = 300.0
    failures: float = 0.001
    slow_streams: float = 0.002
    slow_nodes: float = 0.005


@dataclass(frozen=True, slots=True)
class DriverCosts:
    """CPU seconds that the real driver spends, measured on one core of a Xeon, with up to 1,000 calls in flight.

    The simulated driver spends them on virtual time: answers wait while it is busy.

    Attributes:
        call: to ask an actor.
        answer: to take one answer and act on it.
        waiting: of one turn of the loop, for each call in flight (two `ray.wait`).
        actor: of one turn of the loop, for each actor.
    """

    call: float = 0.2e-3
    answer: float = 0.2e-3
    waiting: float = 2e-6
    actor: float = 4e-6


@dataclass(frozen=True, slots=True)
class Site:
    """One world to run in.

    Attributes:
        gpus: one actor on each.
        shards: how many.
        images: of a shard, median.
        spread: sigma of the lognormal sizes of shards.
        image_bytes: of a stored image, on average.
        rate: images/s of a healthy actor, decode and encode included.
        gpus_per_node: that are lost together.
        warm_up: seconds of an actor's start beyond `times.load`, which was measured on a CPU: CUDA, gigabytes of
            weights, graphs. An assumption.
    """

    gpus: int
    shards: int
    times: Times
    rates: Rates = Rates()
    costs: DriverCosts = DriverCosts()
    images: int = 10_000
    spread: float = 0.3
    image_bytes: int = 50_000
    rate: float = 2_000.0
    gpus_per_node: int = 8
    warm_up: float = 20.0
    seed: int = 0

    @property
    def nodes(self) -> int:
        return math.ceil(self.gpus / self.gpus_per_node)


@dataclass(slots=True)
class Lot:
    """The dice of one simulation."""

    site: Site
    dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.site.seed)

    def images(self) -> int:
        """Of one shard."""
        return max(1, round(self.site.images * self.dice.lognormvariate(0.0, self.site.spread)))

    def speed(self) -> float:
        """Of a node, 1 is healthy."""
        return 0.5 if self.dice.random() < self.site.rates.slow_nodes else 1.0

    def death(self) -> float:
        """Seconds until an actor dies of its own."""
        return self._after(self.site.rates.deaths)

    def preemption(self) -> float:
        """Seconds until a node is taken away."""
        return self._after(self.site.rates.preemptions)

    def away(self) -> float:
        """Seconds until it is back."""
        return self.dice.expovariate(1 / self.site.rates.away)

    def stream(self) -> float:
        """Images/s that the store gives one attempt, at most."""
        return self.site.rate * (0.1 if self.dice.random() < self.site.rates.slow_streams else 1.0)

    def failure(self) -> float | None:
        """The share of an attempt's images after which the store fails it; None if it does not."""
        return self.dice.random() if self.dice.random() < self.site.rates.failures else None

    def of(self, values: Sequence[float]) -> float:
        """One of the measured values."""
        return self.dice.choice(values)

    def _after(self, per_hour: float) -> float:
        return self.dice.expovariate(per_hour / HOUR) if per_hour else math.inf
