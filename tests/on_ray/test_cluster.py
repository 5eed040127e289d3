"""How many actors a cluster gets, and what each may use."""

import os

import pytest
import ray

from pipeline.config import JobConfig
from pipeline.errors import UsageError
from pipeline.on_ray.cluster import _connect, _place

GPU_NODE, SMALL_GPU_NODE, HEAD = {"CPU": 96.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}, {"CPU": 64.0}
GROWING = {"address": "auto", "actors": "1..16", "gpus_per_actor": 1, "cpus_per_actor": 12}


@pytest.mark.parametrize(
    ("nodes", "wanted", "placement"),
    [
        ([{"CPU": 2.0}], {}, (1, 1, 2, 0.0)),
        ([{"CPU": 2.0}], {"actors": 4}, (4, 4, 1, 0.0)),
        ([{"CPU": 8.0}], {"actors": "1..4"}, (1, 4, 2, 0.0)),
        ([{"CPU": 8.0}] * 3, {"actors": 1}, (1, 1, 8, 0.0)),
        ([HEAD, GPU_NODE], {}, (8, 8, 12, 1.0)),
        ([HEAD, GPU_NODE, SMALL_GPU_NODE], {}, (10, 10, 8, 1.0)),
        ([GPU_NODE], {"actors": "1..64"}, (1, 64, 12, 1.0)),
        ([GPU_NODE], {"gpus_per_actor": 0.5}, (16, 16, 6, 0.5)),
        ([GPU_NODE], {"gpus_per_actor": 0, "actors": 2}, (2, 2, 48, 0.0)),
        ([GPU_NODE], {"cpus_per_actor": 3}, (8, 8, 3, 1.0)),
        ([{"CPU": 0.0}], GROWING, (1, 16, 12, 1.0)),
        ([{"CPU": 0.0}, GPU_NODE], GROWING, (1, 16, 12, 1.0)),
    ],
)
def test_placement(nodes: list[dict], wanted: dict, placement: tuple) -> None:
    found = _place(JobConfig(cluster=wanted), nodes)
    assert (found.fewest, found.most, found.cpus, found.gpus) == placement
    assert found.device == ("cuda" if placement[3] else "cpu")


@pytest.mark.parametrize(
    ("nodes", "wanted", "says"),
    [
        ([{"CPU": 8.0}], {"gpus_per_actor": 1}, "has no GPU"),
        ([{"CPU": 8.0}], {**GROWING, "address": None}, "has no GPU"),
        ([{"CPU": 0.0}], {**GROWING, "cpus_per_actor": None}, "has no GPU"),
        ([{"CPU": 0.0}], {"address": "auto", "actors": "1..16"}, "no CPU to work with yet"),
    ],
)
def test_cluster_that_cannot_hold_an_actor(nodes: list[dict], wanted: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        _place(JobConfig(cluster=wanted), nodes)


@pytest.mark.parametrize(
    ("given", "address", "heaps", "pool"),
    [(None, None, "2", "system"), ("7", None, "7", "system"), (None, "auto", None, None)],
)
def test_ray_that_starts_here_has_few_heaps(
    given: str | None, address: str | None, heaps: str | None, pool: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = []
    monkeypatch.setattr(os, "environ", {} if given is None else {"MALLOC_ARENA_MAX": given})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5))
    monkeypatch.setattr(ray, "init", lambda **_: environments.append(dict(os.environ)))
    _connect(JobConfig(cluster={"address": address}))
    [found] = environments
    assert (found.get("MALLOC_ARENA_MAX"), found.get("ARROW_DEFAULT_MEMORY_POOL")) == (heaps, pool)
