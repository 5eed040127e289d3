"""Decode actors on a real Ray: the same bytes, a death that costs one attempt, and how far ahead they may run."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from pipeline import cluster, driver
from pipeline.config import JobConfig, resolve
from pipeline.monitor import ExitCode
from pipeline.progress import Snapshot
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from tests.support.commands import parts
from tests.support.corpora import write_corpus

pytestmark = pytest.mark.system
SHARDS, SAMPLES = 4, 40
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), shards=SHARDS, samples=SAMPLES)


def job(corpus: Path, model: Path, output: Path, decode_actors: int) -> JobConfig:
    settings = [
        "image.size=32",
        "cluster.actors=1",
        "cluster.cpus_per_actor=1",
        f"cluster.decode_actors={decode_actors}",
        "limits.backoff_seconds=0.05",
        "qa.max_divergence=null",  # colours by lot, shard by shard
    ]
    flags = {"shards": [str(corpus)], "model": str(model), "output": str(output)}
    return resolve(settings=settings, flags=flags, environment={})


class Killer:
    """Kills the decode actor that is at work, once: as soon as the first shard has been given to the actor."""

    def __init__(self) -> None:
        self.fired, self.notes = 0, list[str]()

    def note(self, message: str) -> None:
        self.notes.append(message)

    def show(self, snapshot: Snapshot) -> None:
        if snapshot.shards_running and not self.fired:
            for process in psutil.process_iter(["cmdline"]):
                if "ray::RemoteDecoder.feed" in " ".join(process.info["cmdline"] or ()):
                    os.kill(process.pid, signal.SIGKILL)
                    self.fired += 1

    def count(self, what: str, done: int, total: int) -> None:
        pass

    def close(self) -> None:
        pass


def test_decode_actors_give_the_same_bytes(one_ray: None, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    for actors in (0, 1):
        result = driver.run(job(corpus, tiny_model, tmp_path / str(actors), actors))
        assert result.exit_code is ExitCode.OK
    assert parts(tmp_path / "0") == parts(tmp_path / "1")
    supply = [json.loads((tmp_path / name / "report" / "events.json").read_text())["supply"] for name in "01"]
    assert list(supply[0]) == ["here"]
    assert "remote" in supply[1]


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
