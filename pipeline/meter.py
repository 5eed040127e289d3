"""Where the time goes: seconds of work and of waiting by stage, and what has been done so far."""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum


class Part(StrEnum):
    """The stages of an actor whose busy time is measured."""

    FETCH = "fetch"  # waiting for bytes of the store, and walking the tar
    DECODE = "decode"  # bytes to pixels, in the decode pool
    ENCODE = "encode"  # pixels to indices, on the device
    WRITE = "write"  # rows to Parquet, checked
    INSPECT = "inspect"  # QA: some rows decoded, all counted
    PUBLISH = "publish"  # the conditional create


@dataclass(frozen=True, slots=True)
class Reading:
    """A moment's state of a meter.

    Attributes:
        busy: seconds of work by stage, summed over threads.
        images, samples, rejects, bytes_read, tokens: what has been done so far.
        reasons: rejects by reason.
    """

    busy: dict[str, float] = field(default_factory=dict)
    images: int = 0
    samples: int = 0
    rejects: int = 0
    bytes_read: int = 0
    tokens: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


class Meter:
    """Thread-safe sums of one actor's work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    @contextmanager
    def busy(self, stage: Part) -> Iterator[None]:
        """Count the time inside as work of `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spend(stage, time.perf_counter() - start)

    def spend(self, stage: Part, seconds: float) -> None:
        """Count `seconds` of work of `stage`."""
        with self._lock:
            self._busy[stage.value] += seconds  # type: ignore[assignment]  # a Counter holds floats as well

    def count(self, *, images: int = 0, samples: int = 0, bytes_read: int = 0, tokens: int = 0) -> None:
        """Count finished work."""
        with self._lock:
            self._done.update(images=images, samples=samples, bytes_read=bytes_read, tokens=tokens)

    def reject(self, reason: str) -> None:
        """Count a sample that became no row."""
        with self._lock:
            self._done["rejects"] += 1
            self._reasons[reason] += 1

    def reset(self) -> None:
        """Forget what was counted."""
        with self._lock:
            self._busy.clear()
            self._done.clear()
            self._reasons.clear()

    def read(self) -> Reading:
        """What has been counted so far."""
        with self._lock:
            return Reading(busy=dict(self._busy), reasons=dict(self._reasons), **self._done)


def lanes_of(decode: int, encode: int, shards: int) -> dict[str, int]:
    """How many threads (or devices) work at each stage, where so many decode, encode, and have a shard each."""
    by_shard = (Part.FETCH, Part.WRITE, Part.INSPECT, Part.PUBLISH)
    return {Part.DECODE: decode, Part.ENCODE: encode, **dict.fromkeys(by_shard, shards)}


def bound(busy: Mapping[str, float], lanes: Mapping[str, int], wall: float) -> tuple[str, float]:
    """The stage that bounds a run, and the share of the time in which all its lanes were busy.

    Args:
        busy: seconds of work by stage, summed over its lanes.
        lanes: how many threads (or devices) work at a stage.
        wall: seconds that passed.
    """
    if not busy or wall <= 0:
        return "start-up", 0.0
    shares = {stage: seconds / (wall * max(1, lanes.get(stage, 1))) for stage, seconds in busy.items()}
    stage = max(shares, key=lambda name: shares[name])
    return stage, min(1.0, shares[stage])
