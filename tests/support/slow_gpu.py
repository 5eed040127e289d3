"""Stands in for CUDA: streams and events as CUDA promises them and no better, with every freedom it leaves used.

Each stream is a queue of work. Nothing runs when it is submitted: a lot decides which stream moves when, so a copy may
read its source long after, and another stream may be far ahead unless an event holds it. Fresh memory holds garbage.
"""

import random
import threading
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

Work = Callable[[], object]


class Event:
    """As `torch.cuda.Event`: stands for its last record."""

    def __init__(self, gpu: "SlowGpu") -> None:
        self._gpu, self.recorded, self.reached = gpu, 0, 0

    def record(self, stream: "Stream") -> None:
        with self._gpu.lock:
            self.recorded += 1
            number = self.recorded
            stream.append(lambda: setattr(self, "reached", max(self.reached, number)))

    def synchronize(self) -> None:
        with self._gpu.lock:
            while self.reached < self.recorded:
                self._gpu.step()

    def elapsed_time(self, end: "Event") -> float:
        assert self.reached
        assert end.reached
        return 1.0


class Stream:
    """A queue of (may run, work)."""

    def __init__(self, gpu: "SlowGpu") -> None:
        self._gpu = gpu
        self.queue: deque[tuple[Callable[[], bool], Work]] = deque()

    def append(self, work: Work, ready: Callable[[], bool] = lambda: True) -> None:
        with self._gpu.lock:
            self.queue.append((ready, work))
            self._gpu.maybe_step()

    def wait_event(self, event: Event) -> None:
        number = event.recorded
        self.append(lambda: None, lambda: event.reached >= number)


class SlowGpu:
    """Answers like `pipeline.engine.cuda.Gpu`.

    Args:
        seed: of the lots.
        eager: how likely a step is after each submission (0 to 1); 1 runs all at once.
    """

    def __init__(self, seed: int = 0, eager: float = 0.3) -> None:
        self.lock = threading.RLock()
        self._random, self._eager = random.Random(seed), eager
        self.compute, self.copies = Stream(self), Stream(self)
        self.captured = 0

    def event(self) -> Event:
        return Event(self)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.full(shape, 1, dtype=dtype) if dtype is torch.bool else torch.full(shape, 77, dtype=dtype)

    buffer = pinned

    def copy(self, target: Tensor, source: Tensor, stream: Stream) -> None:
        stream.append(lambda: target.copy_(source))

    def launch(self, work: Work) -> None:
        self.compute.append(work)

    def capture(self, work: Work) -> Work:
        self.captured += 1
        return work

    def synchronize(self) -> None:
        with self.lock:
            while self.compute.queue or self.copies.queue:
                self.step()

    free_memory = synchronize

    def maybe_step(self) -> None:
        while self._random.random() < self._eager and (self.compute.queue or self.copies.queue):
            self.step()

    def step(self) -> None:
        """Let one stream, chosen by lot among those that can, do its next piece of work."""
        able = [stream for stream in (self.compute, self.copies) if stream.queue and stream.queue[0][0]()]
        assert able, "all streams wait for one another"
        _, work = self._random.choice(able).queue.popleft()
        work()
