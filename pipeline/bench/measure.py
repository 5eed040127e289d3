"""Measuring: work repeated for some seconds, its wall time and its CPU time, and how many cores were to be had.

CPU time is that of all threads of this process, the ones of BLAS and OpenMP included. On a machine that others use as
well it says more than wall time.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PROBE_SECONDS = 0.5
PROBE_BYTES = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class Taken:
    """Work that was done, and what it took.

    Attributes:
        units: how much was done: images, bytes, ...
        wall: seconds that passed.
        cpu: seconds of CPU time, summed over threads.
    """

    units: float
    wall: float
    cpu: float

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.wall


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure measured several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(median(values), min(values), max(values))


def repeat(work: Callable[[], float], seconds: float) -> Taken:
    """Do `work` again and again, for about `seconds` and once at least.

    Args:
        work: returns how much it has done.
    """
    units, wall, cpu = 0.0, time.perf_counter(), time.process_time()
    while not units or time.perf_counter() - wall < seconds:
        units += work()
    return Taken(units, time.perf_counter() - wall, time.process_time() - cpu)


def free_cores(cores: int) -> float:
    """How many of `cores` this process gets just now, found by hashing on as many threads without the GIL."""
    with ThreadPoolExecutor(cores) as pool:
        taken = repeat(lambda: sum(pool.map(_hash, range(4 * cores))), PROBE_SECONDS)
    return min(float(cores), taken.cpu / taken.wall)


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def peak_memory() -> int:
    """The most that was resident since this process started (bytes)."""
    status = Path("/proc/self/status").read_text()  # not getrusage: it may start with what the parent held
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _hash(_: int) -> float:
    hashlib.sha256(PROBE_BYTES)
    return 1.0
