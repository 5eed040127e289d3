"""The Ray cluster of a run: joined or started here, and how many actors it gets.

With `driver` and `jobs/submit.py` the only rooms that speak Ray.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from pipeline.config import JobConfig
from pipeline.errors import UsageError

OBJECT_STORE_BYTES = 100 << 20  # no image goes through the object store


@dataclass(frozen=True, slots=True)
class Placement:
    """How many actors at least and at most, and what each one reserves."""

    fewest: int
    most: int
    cpus: int
    gpus: float

    @property
    def device(self) -> str:
        """`cuda` if an actor reserves a share of a GPU, else `cpu`."""
        return "cuda" if self.gpus else "cpu"


@contextmanager
def cluster(config: JobConfig) -> Iterator[Placement]:
    """Join the cluster, or start Ray here; leave it as it was found."""
    mine = not ray.is_initialized()
    if mine:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if config.cluster.address:
            ray.init(address=config.cluster.address, **options)
        else:
            cores = len(os.sched_getaffinity(0))
            wanted = (config.cluster.actor_range or (1, 1))[1] * (config.cluster.cpus_per_actor or 1)
            ray.init(
                address="local",
                num_cpus=max(cores, wanted),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **options,
            )
    try:
        yield _place(config, ray.cluster_resources())
    finally:
        if mine:
            ray.shutdown()


def _place(config: JobConfig, resources: dict[str, float]) -> Placement:
    wanted, gpus = config.cluster, int(resources.get("GPU", 0))
    per_actor = wanted.gpus_per_actor if wanted.gpus_per_actor is not None else (1.0 if gpus else 0.0)
    here = int(gpus / per_actor) if per_actor else 1
    fewest, most = wanted.actor_range or (here, here)
    if not most:
        raise UsageError(f"cluster.gpus_per_actor is {per_actor}, but the cluster has {gpus} GPUs")
    cores = int(resources.get("CPU", 1))
    return Placement(fewest, most, wanted.cpus_per_actor or max(1, cores // most), per_actor)


class RemoteWorker:
    """The worker inside an actor's process. Imported there only: the driver needs no torch."""

    def __init__(self, *arguments: Any) -> None:
        from pipeline.worker import Worker

        self._worker = Worker(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._worker, method)(*arguments)
