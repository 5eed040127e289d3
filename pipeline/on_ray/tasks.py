"""Many small pieces of work on a Ray cluster: each a task of one core."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.config import ClusterConfig, JobConfig
from pipeline.errors import RunFailed, StorageError, TokenmillError
from pipeline.on_ray.cluster import cluster

RETRIES = 3  # of a task whose node or process died, or whose store was down

C = TypeVar("C")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Tasks:
    """Does pieces of work on a cluster.

    Attributes:
        config: `address` of the cluster; if it has none, Ray is started here, and ended.
        at_once: pieces of work at the same time; None for one on each core of the cluster.
    """

    config: ClusterConfig
    at_once: int | None

    def __call__(self, function: Callable[[C, I], R], common: C, items: Sequence[I], /) -> Iterator[R]:
        """`function(common, item)` for all items, as the results come; all of it picklable.

        What still runs when the caller loses interest ends with this process's connection to Ray. (It is not cancelled:
        Ray 2.60 aborts the caller if a task ends at the moment in which it is cancelled by force.)

        Raises:
            TokenmillError: one that `function` raised.
            RunFailed: anything else that went wrong with a piece.
        """
        if not items:
            return
        config = self.config.model_copy(update={"gpus_per_actor": 0.0, "actors": None})
        with cluster(JobConfig(cluster=config)):
            shared, todo = ray.put(common), iter(items)
            waiting: list[Any] = []
            task = ray.remote(function).options(num_cpus=1, max_retries=RETRIES, retry_exceptions=[StorageError])
            most = self.at_once or int(ray.cluster_resources().get("CPU", 1))
            while True:
                waiting += [task.remote(shared, item) for item in itertools.islice(todo, most - len(waiting))]
                if not waiting:
                    return
                (ready, *_), waiting = ray.wait(waiting)
                yield _result(ready)


def _result(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, TokenmillError):
            raise error.cause from error
        raise RunFailed(f"a task failed: {error}") from error
    except RayError as error:
        raise RunFailed(f"a task was lost, {RETRIES} times: {error}") from error
