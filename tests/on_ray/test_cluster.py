"""How many actors a cluster gets, and what each may use."""

import os

import psutil
import pytest
import ray

from pipeline.config import JobConfig
from pipeline.errors import UsageError
from pipeline.on_ray.cluster import _connect, _place, cluster

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
    ("given", "expected"),
    [
        ({}, {"MALLOC_ARENA_MAX": "2"}),
        ({"MALLOC_ARENA_MAX": "7"}, {"MALLOC_ARENA_MAX": "7"}),
        ({"RAY_prestart_worker_first_driver": "1"}, {"RAY_prestart_worker_first_driver": "1", "MALLOC_ARENA_MAX": "2"}),
    ],
)
def test_ray_that_starts_here_has_few_small_processes(
    given: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = {"RAY_prestart_worker_first_driver": "0", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    assert environment_of_ray(given, {}, monkeypatch) == defaults | expected


@pytest.mark.system
def test_ray_that_starts_here_has_no_idle_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_prestart_worker_first_driver", "MALLOC_ARENA_MAX", "ARROW_DEFAULT_MEMORY_POOL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # to be put back, whatever is set meanwhile
    with cluster(JobConfig()):
        family = [process.name() for process in psutil.Process().children(recursive=True)]
    assert "raylet" in family
    assert not [name for name in family if name.startswith("ray::IDLE")]


def test_ray_that_is_joined_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment_of_ray({}, {"address": "auto"}, monkeypatch) == {}


def environment_of_ray(given: dict[str, str], wanted: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict:
    """The variables with which Ray is started or joined on a machine of five cores."""
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5))
    monkeypatch.setattr(ray, "init", lambda **_: environments.append(dict(os.environ)))
    _connect(JobConfig(cluster=wanted))
    [found] = environments
    return found
