"""What a person sees while a run works: one live line block on a terminal, plain lines elsewhere. All on stderr."""

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from pipeline.meter import Reading

SHOW_SECONDS = 0.5  # between two looks at the run
PLAIN_SECONDS = 5.0  # a log file gets a line so often


Fact = str | int | float | None


class LogConfig(BaseModel):
    """What stderr receives during a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["auto", "json"] = Field(
        "auto", description="auto: a live display on a terminal, else lines; json: a JSON object per line, for machines"
    )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a run at one moment.

    Attributes:
        shards_total, shards_done, shards_running, quarantined: counts; done includes earlier runs' shards.
        images, rejects: samples tokenized and rejected by this run.
        rate: images/s lately.
        eta: seconds left, None while unknown.
        bound: the stage that bounds the run, and the share of the time it is busy.
        actors: how many are at work.
        shards_waiting: for an actor.
        total: what all actors have done in this run.
        lanes: threads or devices that work at a stage, of all actors.
        queues: what waits before a stage now, in all actors (`Pulse.queues`).
        idle: since when nothing has moved (seconds).
        agreement: share of the tokens of `exact` that the run's precision gave at the start; None if not measured.
        psnr: of the shard that was judged last (dB); None if none was.
    """

    shards_total: int
    shards_done: int
    shards_running: int
    quarantined: int
    images: int
    rejects: int
    rate: float
    eta: float | None
    bound: tuple[str, float]
    actors: int
    shards_waiting: int = 0
    total: Reading = field(default_factory=Reading)
    lanes: Mapping[str, int] = field(default_factory=dict)
    queues: Mapping[str, int] = field(default_factory=dict)
    idle: float = 0.0
    agreement: float | None = None
    psnr: float | None = None

    def line(self) -> str:
        """The snapshot in one line."""
        stage, share = self.bound
        parts = [
            f"shards {self.shards_done}/{self.shards_total}",
            f"{self.images:,} images",
            f"{self.rate:,.1f} images/s",
            f"{self.rejects:,} rejects",
            f"ETA {clock(self.eta)}",
            f"bound by {stage} ({share:.0%} busy)",
            f"{self.actors} actor{'s' * (self.actors != 1)}",
        ]
        if self.quarantined:
            parts.insert(1, f"{self.quarantined} quarantined")
        return " | ".join(parts)


class Progress(Protocol):
    """Receives what happens during a run. Facts are for machines: `shard` (id), `attempt`, `actor`, counts."""

    def note(self, message: str, **facts: Fact) -> None:
        """Something worth a line of its own happened."""
        ...

    def event(self, name: str, **facts: Fact) -> None:
        """Something of which there are too many for a person happened: a shard `begun` or `committed`."""
        ...

    def show(self, snapshot: Snapshot) -> None:
        """The run's state now; called about once a second."""
        ...

    def count(self, what: str, done: int, total: int) -> None:
        """So many of `total` are done, in a phase that has nothing else to show; called about once a second."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class Silent:
    """Shows nothing."""

    def note(self, message: str, **facts: Fact) -> None:
        pass

    def event(self, name: str, **facts: Fact) -> None:
        pass

    def show(self, snapshot: Snapshot) -> None:
        pass

    def count(self, what: str, done: int, total: int) -> None:
        pass

    def close(self) -> None:
        pass


class Plain:
    """Lines for a log file: a note at once, the state every few seconds."""

    def __init__(self, write: Callable[[str], object] = sys.stderr.write) -> None:
        self._write, self._last = write, float("-inf")

    def note(self, message: str, **_: Fact) -> None:
        self._write(f"{message}\n")

    def event(self, name: str, **facts: Fact) -> None:
        pass

    def show(self, snapshot: Snapshot) -> None:
        self._state(snapshot.line())

    def count(self, what: str, done: int, total: int) -> None:
        self._state(f"{what} {done:,}/{total:,}")

    def _state(self, line: str) -> None:
        if time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            self._write(f"{line}\n")

    def close(self) -> None:
        pass


class Terminal:
    """A bar that stays in place, with notes scrolling above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def note(self, message: str, **_: Fact) -> None:
        self._console.print(message)

    def event(self, name: str, **facts: Fact) -> None:
        pass

    def show(self, snapshot: Snapshot) -> None:
        self._bar(snapshot.shards_done + snapshot.quarantined, snapshot.shards_total, snapshot.line())

    def count(self, what: str, done: int, total: int) -> None:
        self._bar(done, total, f"{what} {done:,}/{total:,}")

    def _bar(self, done: int, total: int, line: str) -> None:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(total=max(1, total), completed=done, width=30))
        grid.add_row(line)
        self._live.update(grid)

    def close(self) -> None:
        self._live.stop()


class JsonLines:
    """A log for machines: every line one JSON object with `time` (UTC, ISO 8601), `run`, `event`, and facts.

    Args:
        run: the name of the run (`run_name`).
        write: takes the lines.
    """

    def __init__(self, run: str, write: Callable[[str], object] = sys.stderr.write) -> None:
        self._run, self._write, self._last = run, write, float("-inf")

    def note(self, message: str, **facts: Fact) -> None:
        self.event("note", message=message, **facts)

    def event(self, name: str, **facts: Fact) -> None:
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._write(json.dumps({"time": stamp, "run": self._run, "event": name, **facts}) + "\n")

    def show(self, snapshot: Snapshot) -> None:
        stage, busy = snapshot.bound
        names = ("shards_total", "shards_done", "shards_running", "quarantined", "images", "rejects", "rate", "actors")
        self._state("progress", **{name: getattr(snapshot, name) for name in names}, bound=stage, busy=round(busy, 3))

    def count(self, what: str, done: int, total: int) -> None:
        self._state(what, done=done, total=total)

    def _state(self, name: str, **facts: Fact) -> None:
        if time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            self.event(name, **facts)

    def close(self) -> None:
        pass


def run_name(output: str) -> str:
    """What a run is called in logs and metrics: the end of OUTPUT's URL and a part of its hash; resumed, the same."""
    stem = re.sub("[^A-Za-z0-9_.-]+", "-", output.rstrip("/").rpartition("/")[2])
    return f"{stem[:40]}-{hashlib.sha256(output.encode()).hexdigest()[:8]}"


def for_stderr(log: LogConfig | None = None, run: str = "") -> Progress:
    """The display that fits where stderr goes, or the log that was asked for."""
    if log and log.format == "json":
        return JsonLines(run)
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)  # messages hold paths: [x], :x:
    return Terminal(console) if console.is_terminal else Plain()


def clock(seconds: float | None) -> str:
    """Seconds as 1:02:03 or 2:03; `--:--` if unknown."""
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
