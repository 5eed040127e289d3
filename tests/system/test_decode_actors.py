"""Decode actors on a real Ray: the same bytes, a death that costs one attempt, and how far ahead they may run."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import ray

from pipeline import driver
from pipeline.config import JobConfig, resolve
from pipeline.monitor import ExitCode
from pipeline.on_ray import cluster, feeders
from pipeline.on_ray.feeders import Feeders
from pipeline.schedule import Assignment
from pipeline.shards.manifest import Shard, freeze
from pipeline.storage import Storage
from tests.support.commands import parts
from tests.support.corpora import write_corpus
from tests.system.test_driver import Notes

pytestmark = pytest.mark.system
SHARDS, SAMPLES = 4, 40
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode actors are ready before the first shard begins: these shards would be done before."""
    recruit = Feeders.recruit

    def recruited(self: Feeders) -> None:
        recruit(self)
        wait_for_all(self)

    monkeypatch.setattr(Feeders, "recruit", recruited)


def wait_for_all(pool: Feeders) -> None:
    """Until every decode actor that is being started or started again is ready."""
    ray.wait(list(pool._starting), num_returns=len(pool._starting), timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), shards=SHARDS, samples=SAMPLES)


def job(corpus: Path, model: Path, output: Path, decode_actors: int, *more: str) -> JobConfig:
    settings = [
        "image.size=32",
        "cluster.actors=1",
        "cluster.cpus_per_actor=1",
        f"cluster.decode_actors={decode_actors}",
        "limits.backoff_seconds=0.05",
        "qa.max_divergence=null",  # colours by lot, shard by shard, and an untrained model
        "qa.min_psnr=null",
    ]
    flags = {"shards": [str(corpus)], "model": str(model), "output": str(output)}
    return resolve(settings=[*settings, *more], flags=flags, environment={})


class Dying(cluster.RemoteDecoder):
    """A decode actor that dies once, in the middle of a shard."""

    def __init__(self, config: JobConfig, cpus: int) -> None:
        super().__init__(config, cpus)
        self._folder = Path(config.output.url.removeprefix("file://")).parent

    def feed(self, shard: Shard, *arguments: object) -> Iterator[Any]:
        for one in super().feed(shard, *arguments):
            yield one
            if self.dies(shard):
                (self._folder / f"died-{uuid4()}").touch()
                os._exit(1)

    def dies(self, shard: Shard) -> bool:
        return not deaths(self._folder)


class Poisoned(Dying):
    """A decode actor that one shard kills, again and again."""

    def dies(self, shard: Shard) -> bool:
        return shard.url.endswith("00002.tar")


def deaths(folder: Path) -> int:
    return len(list(folder.glob("died-*")))


def test_decode_actors_give_the_same_bytes(one_ray: None, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    for actors in (0, 1):
        result = driver.run(job(corpus, tiny_model, tmp_path / str(actors), actors))
        assert result.exit_code is ExitCode.OK
    assert parts(tmp_path / "0") == parts(tmp_path / "1")
    supply = [json.loads((tmp_path / name / "report" / "events.json").read_text())["supply"] for name in "01"]
    assert list(supply[0]) == ["here"]
    assert "remote" in supply[1]


def test_decode_actor_that_dies_costs_one_attempt(
    one_ray: None, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeders, "RemoteDecoder", Dying)
    notes = Notes()
    result = driver.run(job(corpus, tiny_model, tmp_path / "out", 1), notes)
    assert result.exit_code is ExitCode.OK
    assert deaths(tmp_path) == 1
    assert sum("will be tried again" in line and "decode actor was lost" in line for line in notes.lines) == 1
    assert result.summary["rows"] == SHARDS * SAMPLES


def test_shard_that_kills_its_decode_actors_is_decoded_behind_a_wall(
    one_ray: None, corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(self: Feeders, assignment: Assignment) -> Any:
        while (found := taken(self, assignment)) is None:
            wait_for_all(self)
        return found

    taken, notes = Feeders.take, Notes()
    monkeypatch.setattr(Feeders, "take", take)  # every attempt that may be is fed
    monkeypatch.setattr(feeders, "RemoteDecoder", Poisoned)
    result = driver.run(job(corpus, tiny_model, tmp_path / "out", 1, "cluster.shards_in_flight=1"), notes)
    assert result.exit_code is ExitCode.OK, notes.lines
    assert deaths(tmp_path) == 2, "the third attempt is not fed"
    assert result.summary["rows"] == SHARDS * SAMPLES


def test_producer_waits_for_its_consumer(one_ray: None, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = job(corpus, tiny_model, tmp_path, 1)
    (shard, *_) = freeze(Storage(), config.shards)
    decoder = ray.remote(Counting).options(max_concurrency=2).remote()
    stream = cluster._stream(decoder, shard, "")
    for taken in range(1, 6):
        assert next(stream) == taken - 1
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (made := ray.get(decoder.made.remote())) < taken + cluster.CHUNKS_AHEAD - 1:
            assert time.monotonic() < deadline
        assert made <= taken + cluster.CHUNKS_AHEAD + 1
    ray.kill(decoder)
    (failure,) = list(stream)[-1:]
    assert (failure.kind.value, failure.reason) == ("infra", "decode_actor")


class Counting:
    """A decode actor that makes numbers, and says how many."""

    def __init__(self) -> None:
        self._made, self._lock = 0, threading.Lock()

    def feed(self, _shard: object, _resampled_by: str) -> Iterator[int]:
        for number in range(1000):
            with self._lock:
                self._made = number + 1
            yield number

    def made(self) -> int:
        return self._made
