"""What a run has done so far, how fast, what bounds it, and how it ended."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

from pipeline.forecast import forecast
from pipeline.messages import Calibration, ShardReport
from pipeline.meter import Reading, bound, lanes_of
from pipeline.progress import Snapshot
from pipeline.schedule import Schedule, State
from pipeline.timeline import Point, Timeline
from pipeline.tokens.schema import ColumnsConfig

WINDOW_SECONDS = 15.0  # the rate shown is that of the last so many seconds
MIN_SAMPLES_TO_JUDGE = 1000  # below that a fraction of rejects stops nothing before the end


class ExitCode(IntEnum):
    """How a command ends."""

    OK = 0  # every shard is committed
    FAILED = 1  # the run could not go on
    USAGE = 2  # bad usage or configuration: change it first
    INCOMPLETE = 3  # finished, but shards are quarantined or a gate failed
    STOPPED = 4  # run again to resume


@dataclass(frozen=True, slots=True)
class Rates:
    """Throughput of a run beside what each stage can do alone (images/s; 0 where not measured).

    Attributes:
        end_to_end: of this run, from the first assignment to the last part.
        model_alone, decode_alone: ceilings of all actors, measured at the start.
        bound: what both stages allow together: on a GPU the slower one; on a CPU, where they share the cores, the rate
            at which the summed time per image fits.
    """

    end_to_end: float
    model_alone: float
    decode_alone: float
    bound: float

    @property
    def fraction(self) -> float:
        """The share of the bound that was reached."""
        return self.end_to_end / self.bound if self.bound else 0.0

    def __str__(self) -> str:
        if not self.bound:
            return f"{self.end_to_end:,.1f} images/s end to end"
        return (
            f"{self.end_to_end:,.1f} images/s end to end; model alone {self.model_alone:,.1f}, "
            f"decode alone {self.decode_alone:,.1f}, both together allow {self.bound:,.1f}: {self.fraction:.0%} reached"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended.

    Attributes:
        exit_code: of the command.
        message: one sentence.
        summary: the accounts of OUTPUT, as in summary.json.
        rates: of this run.
        seconds: wall time of this run.
    """

    exit_code: ExitCode
    message: str
    summary: dict[str, Any]
    rates: Rates
    seconds: float


@dataclass
class Monitor:
    """Collects the actors' readings and the shards' reports of one run."""

    shards_total: int
    shards_before: int
    bytes_to_do: int
    decode_threads: int
    encode_lanes: int
    shards_in_flight: int
    price_per_actor_hour: float | None = None
    now: Callable[[], float] = time.monotonic
    calibration: Calibration | None = None
    samples: int = 0
    rejects: int = 0
    rows: int = 0
    filled: set[str] = field(default_factory=set)
    psnr: float | None = None
    _readings: dict[str, Reading] = field(default_factory=dict)
    _queues: dict[str, dict[str, int]] = field(default_factory=dict)
    _history: deque[tuple[float, int, int]] = field(default_factory=deque)
    _first: float | None = None
    _last: float | None = None
    _moved: float = 0.0

    def __post_init__(self) -> None:
        self._moved = self.now()
        self.timeline = Timeline(self._lanes(1), self.price_per_actor_hour)

    def calibrated(self, found: Calibration | None, views: int, actors: int) -> None:
        """The first actor has measured: what the run will take is known.

        Args:
            found: None if no image could be read.
            views: of a sample.
            actors: that will share the work.
        """
        self.calibration = found
        expected = forecast(found, views, self.bytes_to_do, actors) if found else None
        self.timeline.forecast = asdict(expected) if expected else None

    def begun(self) -> None:
        """A shard was assigned."""
        self._first = self.now() if self._first is None else self._first
        self.touch()

    def touch(self) -> None:
        """Something moved."""
        self._moved = self.now()

    def committed(self, report: ShardReport) -> None:
        """A shard is done."""
        self.samples += report.counts.wanted
        self.rejects += report.counts.rejects
        self.rows += report.counts.rows
        self.filled |= report.filled
        if report.qa and report.qa.psnr is not None:
            self.psnr = report.qa.psnr
        if report.supply:
            self.timeline.supplied(report.supply.remote, report.supply.waited, report.supply.lasted)
        self._last = self.now()
        self.touch()

    def reading(self, actor: str, reading: Reading, queues: dict[str, int] | None = None) -> None:
        """An actor's meter, and what waits in it if that was asked; one that was overtaken by a later one is old."""
        known = self._readings.get(actor, Reading())
        if reading != known:
            self.touch()
        if (reading.samples, reading.images) >= (known.samples, known.images):
            self._readings[actor] = reading
        if queues is not None:
            self._queues[actor] = queues

    def gone(self, actor: str) -> None:
        """An actor ended; what it has done stays counted."""
        self._queues.pop(actor, None)
        self.touch()

    @property
    def idle_seconds(self) -> float:
        """Since when nothing has moved."""
        return self.now() - self._moved

    def empty_columns(self, columns: ColumnsConfig) -> list[str]:
        """The columns that the user named and no row of this run has a value in, as `columns.caption=txt`."""
        if not self.rows:
            return []
        asked = [(name, name, getattr(columns, name)) for name in sorted(columns.model_fields_set - {"fields"})]
        asked += [(name, f"fields.{name}", source) for name, source in columns.fields.items()]
        return [f"columns.{key}={source}" for name, key, source in asked if source and name not in self.filled]

    def reject_fraction(self) -> float | None:
        """The share of samples rejected, None while too few were seen to judge."""
        return self.rejects / self.samples if self.samples >= MIN_SAMPLES_TO_JUDGE else None

    def snapshot(self, schedule: Schedule, actors: int) -> Snapshot:
        """The state of the run now; the rate is that since the snapshots of the last seconds."""
        total = self._total()
        self._history.append((self.now(), total.images, total.bytes_read))
        while self._history[-1][0] - self._history[0][0] > WINDOW_SECONDS:
            self._history.popleft()
        passed = self.now() - self._first if self._first is not None else 0.0
        self.timeline.add(Point(passed, total.images, actors, total.busy))
        rate, byte_rate = self._lately()
        left = max(0, self.bytes_to_do - total.bytes_read)
        return Snapshot(
            shards_total=self.shards_total,
            shards_done=self.shards_before + schedule.count(State.DONE),
            shards_running=schedule.count(State.RUNNING),
            quarantined=schedule.count(State.QUARANTINED),
            images=total.images,
            rejects=total.rejects,
            rate=rate,
            eta=left / byte_rate if byte_rate else None,
            bound=bound(total.busy, self._lanes(actors), passed),
            actors=actors,
            shards_waiting=schedule.count(State.WAITING),
            total=total,
            lanes=self._lanes(actors),
            queues=_sum(self._queues.values()),
            idle=self.idle_seconds,
            agreement=self.calibration.chosen.agreement if self.calibration and self.calibration.trials else None,
            psnr=self.psnr,
        )

    def end(self, actors: int) -> None:
        """No shard will come any more: the timeline ends with the last one."""
        if self._first is not None and self._last is not None:
            total = self._total()
            self.timeline.end(Point(self._last - self._first, total.images, actors, total.busy))

    def rates(self, actors: int) -> Rates:
        """Throughput of this run beside its ceilings."""
        seconds = (self._last or 0.0) - (self._first or 0.0)
        done = self.rows / seconds if seconds > 0 else 0.0
        if self.calibration is None:
            return Rates(done, 0.0, 0.0, 0.0)
        found = self.calibration
        return Rates(done, found.model_rate * actors, found.decode_rate * actors, found.together * actors)

    def _lanes(self, actors: int) -> dict[str, int]:
        return lanes_of(actors * self.decode_threads, actors * self.encode_lanes, actors * self.shards_in_flight)

    def _total(self) -> Reading:
        readings = self._readings.values()
        fields = {
            name: sum(getattr(reading, name) for reading in readings)
            for name in ("images", "samples", "rejects", "bytes_read", "tokens")
        }
        busy, reasons = (_sum(getattr(reading, name) for reading in readings) for name in ("busy", "reasons"))
        return Reading(busy=busy, reasons=reasons, **fields)

    def _lately(self) -> tuple[float, float]:
        if len(self._history) < 2:
            return 0.0, 0.0
        (t0, images0, bytes0), (t1, images1, bytes1) = self._history[0], self._history[-1]
        seconds = max(1e-9, t1 - t0)
        return (images1 - images0) / seconds, (bytes1 - bytes0) / seconds


def _sum(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All of them added up by key."""
    total: Counter[str] = Counter()
    for some in counts:
        total.update(some)
    return dict(total)


def verdict(
    summary: Mapping[str, Any], stopped: bool, gate: str | None = None, foreign: int = 0
) -> tuple[ExitCode, str]:
    """The exit code of a run, and one sentence that says why.

    Args:
        summary: the accounts of OUTPUT.
        stopped: the run ended before all shards were in a final state.
        gate: why the run failed, or stopped itself, if it did.
        foreign: shards without a part that another run has added to OUTPUT meanwhile, and may be at work on.
    """
    shards = summary["shards"]
    done = f"{shards['committed']:,} of {shards['total']:,} shards are committed"
    if gate:
        return ExitCode.INCOMPLETE, f"{gate}; {done}"
    if stopped:
        return ExitCode.STOPPED, f"stopped: {done}; run the same command again to go on"
    if shards["quarantined"]:
        return ExitCode.INCOMPLETE, (
            f"finished, but {shards['quarantined']:,} shards are quarantined (summary.json names them): {done}; "
            "mend them and run again with --retry-quarantined"
        )
    if shards["committed"] + foreign < shards["total"]:
        return ExitCode.FAILED, (
            f"every shard was reported done, but only {done}; is OUTPUT one place for all nodes, and did nobody delete "
            "parts?"
        )
    if foreign:
        return ExitCode.STOPPED, (
            f"all shards of this run are done, but not {foreign:,} that another run has added meanwhile: {done}; run "
            "the same command again when that run has ended"
        )
    return ExitCode.OK, f"finished: {done}"
