"""The Ray cluster of a run: joined or started here, and how many actors it gets."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayError

from pipeline.config import JobConfig
from pipeline.errors import UsageError
from pipeline.feed import CHUNK_BYTES, Fed
from pipeline.schedule import LOST_DECODER, Failure, Kind
from pipeline.shards.manifest import Shard

OBJECT_STORE_BYTES = 100 << 20  # no image goes through the object store, but for those of decode actors
CHUNKS_AHEAD = 3  # that a decode actor may be ahead of its consumer
FEED_BYTES = (
    (CHUNKS_AHEAD + 2) * 2 * CHUNK_BYTES
)  # of a decode actor in the object store; a chunk may be one large view


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
    """Join the cluster, or start Ray here; leave it as it was found.

    Raises:
        UsageError: there is no cluster at `cluster.address`, or none of its nodes can hold an actor.
    """
    mine = not ray.is_initialized()
    if mine:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _connect(config)
    try:
        yield _place(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    finally:
        if mine:
            ray.shutdown()


def _connect(config: JobConfig) -> None:
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    wanted = config.cluster
    if wanted.address:
        try:
            ray.init(address=wanted.address, **options)
        except (ConnectionError, ValueError, AuthenticationError) as error:
            raise UsageError(f"cluster.address={wanted.address}: no Ray cluster answers there: {error}") from error
        return
    cores = len(os.sched_getaffinity(0))
    for name, value in _lean_processes(cores).items():
        os.environ.setdefault(name, value)  # Ray's processes inherit it
    reserved = (wanted.actor_range or (1, 1))[1] * (wanted.cpus_per_actor or 1)
    reserved += wanted.decode_actors * wanted.cpus_per_decode_actor
    ray.init(
        address="local",
        num_cpus=max(cores, reserved),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES + wanted.decode_actors * FEED_BYTES,
        **options,
    )


def _lean_processes(cores: int) -> dict[str, str]:
    """Variables that keep Ray's processes few and small; what each one saves is in docs/performance.md."""
    return {
        "RAY_prestart_worker_first_driver": "0",  # else an idle process for every core: actors are all that works here
        "MALLOC_ARENA_MAX": str(max(1, cores // 2)),  # glibc gives every thread a heap, each with its own holes
        "ARROW_DEFAULT_MEMORY_POOL": "system",  # Arrow's own begins with a huge page
    }


def _place(config: JobConfig, nodes: list[dict[str, float]]) -> Placement:
    """How many actors the nodes hold, and the share of its node's cores that each may use.

    Args:
        config: what the user asks for.
        nodes: resources of each node that is there now.
    """
    wanted, gpus = config.cluster, sum(node.get("GPU", 0) for node in nodes)
    per_actor = wanted.gpus_per_actor if wanted.gpus_per_actor is not None else (1.0 if gpus else 0.0)
    grows = wanted.address and wanted.actors and wanted.cpus_per_actor
    if per_actor and not gpus and not grows:
        raise UsageError(
            f"cluster.gpus_per_actor is {per_actor:g}, but the cluster has no GPU; if its nodes come when they are "
            "asked for, give cluster.actors and cluster.cpus_per_actor too"
        )
    if not wanted.cpus_per_actor and not any(node.get("CPU") for node in nodes):
        raise UsageError(
            "the cluster has no CPU to work with yet; if its nodes come when they are asked for, give cluster.actors, "
            "cluster.cpus_per_actor and cluster.gpus_per_actor"
        )
    fitting = [(node.get("CPU", 0), int(node.get("GPU", 0) / per_actor)) for node in nodes if per_actor]
    here = sum(actors for _, actors in fitting) if per_actor else 1
    fewest, most = wanted.actor_range or (here, here)
    if per_actor:
        share = min((cpus / actors for cpus, actors in fitting if actors), default=1)
    else:
        share = sum(node.get("CPU", 0) for node in nodes) / most
        share = min(share, max(node.get("CPU", 0) for node in nodes))  # an actor lives on one node
    return Placement(fewest, most, wanted.cpus_per_actor or max(1, int(share)), per_actor)


class RemoteWorker:
    """The worker inside an actor's process. Imported there only: the driver needs no torch."""

    def __init__(self, *arguments: Any) -> None:
        from pipeline.lean import leave_pandas_out
        from pipeline.worker import Worker

        leave_pandas_out()
        self._worker, self._image_decode = Worker(*arguments), arguments[0].image.decode

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._worker, method)(*arguments)

    def tokenize_fed(self, task: Any, decoder: Any) -> Any:
        """One attempt whose shard a decode actor reads."""
        from pipeline.images import resampler

        here = resampler(self._image_decode)
        return self._worker.tokenize(task, lambda shard: _stream(decoder, shard, here))


class RemoteDecoder:
    """The decoder inside a decode actor's process."""

    def __init__(self, *arguments: Any) -> None:
        from pipeline.decoder import Decoder

        self._decoder = Decoder(*arguments)

    def ready(self) -> None:
        """Answers when the actor is."""

    def feed(self, *arguments: Any) -> Iterator[Any]:
        yield from self._decoder.feed(*arguments)


def _stream(decoder: Any, shard: Shard, resampled_by: str) -> Iterator[Fed]:
    """What a decode actor sends of a shard; a `Failure` if it died."""
    options = {"num_returns": "streaming", "_generator_backpressure_num_objects": CHUNKS_AHEAD}
    try:
        for ref in decoder.feed.options(**options).remote(shard, resampled_by):
            yield ray.get(ref)
    except RayError as error:
        yield Failure(Kind.INFRA, LOST_DECODER, f"{shard.url}: its decode actor was lost: {error}")
