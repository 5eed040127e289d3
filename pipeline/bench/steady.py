"""All stages together: one actor's worker on whole shards, in this process, without Ray.

What counts is the steady state: the first batches are not measured, and attempts still at work at the end are stopped.
Parts go to a folder of their own; a shard that is done is begun again, and its part put in the place of the last one.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.errors import RunFailed, UsageError
from pipeline.messages import Task
from pipeline.meter import Part, Reading
from pipeline.schedule import Failure
from pipeline.shards.manifest import Shard
from pipeline.worker import Worker

WARM_BATCHES = 4  # of each shard in flight
LONGER = 10
POLL_SECONDS = 0.01
PATIENCE_SECONDS = 600.0  # for one batch


@dataclass(frozen=True, slots=True)
class Window:
    """Some seconds of steady work.

    Attributes:
        images: tokenized.
        wall: seconds that passed.
        cpu: CPU seconds of the whole process.
        busy: seconds of work by stage, summed over its lanes.
    """

    images: int
    wall: float
    cpu: float
    busy: dict[str, float]

    @property
    def rate(self) -> float:
        """Images/s."""
        return self.images / self.wall

    def share(self, part: Part) -> float:
        """Seconds of work of a stage per second: above 1 where several lanes work at it."""
        return self.busy.get(part, 0.0) / self.wall


def steady(worker: Worker, shards: Sequence[Shard], *, in_flight: int, images: int, seconds: float) -> Window:
    """Have a started worker tokenize shards, and measure it.

    Args:
        worker: started; its configuration says where parts go.
        shards: in turn, again and again.
        in_flight: shards at once.
        images: in the shards in flight. The window holds as many, so that what is done once per shard has its share,
            unless that takes too long.
        seconds: of the window, at least; and at most `LONGER` times as many.

    Raises:
        UsageError: a shard cannot be tokenized.
        RunFailed: no image comes out.
    """
    with _at_work(worker, shards, in_flight) as check:
        for _ in range(WARM_BATCHES * in_flight):
            first = _next_batch(worker, check)
        begun, cpu = time.perf_counter(), time.process_time()
        last, wall = first, 0.0
        while wall < seconds or (last.images - first.images < images and wall < LONGER * seconds):
            last, wall = _next_batch(worker, check), time.perf_counter() - begun
        cpu = time.process_time() - cpu
    busy = {stage: spent - first.busy.get(stage, 0.0) for stage, spent in last.busy.items()}
    return Window(last.images - first.images, wall, cpu, busy)


def _next_batch(worker: Worker, check: Callable[[], None]) -> Reading:
    """The meter as soon as a batch has come out: windows that begin and end with one are not off by parts of one."""
    before, deadline = worker.pulse().reading.images, time.monotonic() + PATIENCE_SECONDS
    while (now := worker.pulse().reading).images == before:
        check()
        if time.monotonic() > deadline:
            raise RunFailed(f"no image was tokenized for {PATIENCE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    return now


@contextmanager
def _at_work(worker: Worker, shards: Sequence[Shard], in_flight: int) -> Iterator[Callable[[], None]]:
    """Keep `in_flight` shards at work, and stop them at the end; what is given raises if one of them failed."""
    tasks = (Task(shard, number, replace=True) for number, shard in enumerate(itertools.cycle(shards)))
    lock, stop, failed, running = threading.Lock(), threading.Event(), list[Failure](), set[Task]()

    def work() -> None:
        while not (stop.is_set() or failed):
            with lock:
                task = next(tasks)
            running.add(task)
            answer = worker.tokenize(task)
            running.discard(task)
            if isinstance(answer, Failure) and not stop.is_set():
                failed.append(answer)

    def check() -> None:
        if failed:
            raise UsageError(f"a shard cannot be tokenized, so there is nothing to measure: {failed[0].message}")

    with ThreadPoolExecutor(in_flight, "shard") as pool:
        threads = [pool.submit(work) for _ in range(in_flight)]
        try:
            yield check
        finally:
            stop.set()
            while not all(thread.done() for thread in threads):
                for task in tuple(running):
                    worker.cancel(task.shard.id, task.attempt)
                wait(threads, POLL_SECONDS)
