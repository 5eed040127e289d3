"""What `plan` names as the bottleneck: the stage that was made slow; and what it probes."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import JobConfig, resolve
from pipeline.engine import Engine
from pipeline.engine.cpu import Result
from pipeline.images import Prepared
from pipeline.isolation import prepare_sample
from pipeline.messages import Task
from pipeline.meter import Part
from pipeline.plan import plan
from pipeline.shards.tar import Sample, TarReader
from pipeline.worker import Worker

SECONDS = 0.02  # that the planted stage takes longer for each sample
fired: list[str] = []


class SlowStore(TarReader):
    """A tar whose bytes come slowly."""

    def __iter__(self) -> Iterator[Sample]:
        for sample in super().__iter__():
            fired.append("fetch")
            time.sleep(SECONDS)
            yield sample


def slow_decode(key: str, members: Mapping[str, bytes], *more: Any, **options: Any) -> Prepared:
    """Decoding that takes its time."""
    fired.append("decode")
    time.sleep(SECONDS)
    return prepare_sample(key, members, *more, **options)  # type: ignore[return-value]  # the corpus has no bad image


def slow_encode(encode: Callable[..., Result]) -> Callable[..., Result]:
    """A model that takes its time, for each image."""

    def slower(self: Engine, forward: object, images: Any) -> Result:
        fired.append("encode")
        with self.meter.busy(Part.ENCODE):
            time.sleep(SECONDS * len(images))
        return encode(self, forward, images)

    return slower


@pytest.fixture
def job(tiny_model: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> JobConfig:
    monkeypatch.setattr("pipeline.engine.calibration.RATE_SECONDS", 0.0)
    fired.clear()
    flags = {"shards": [str(corpus)], "model": str(tiny_model), "image.size": 32, "cluster.cpus_per_actor": 1}
    return resolve(flags=flags, environment={})


@pytest.mark.parametrize(
    ("stage", "place", "planted"),
    [
        ("fetch", "pipeline.feed.TarReader", SlowStore),
        ("decode", "pipeline.worker.prepare_sample", slow_decode),
        ("encode", "pipeline.engine.engine.Engine._piece", slow_encode(Engine._piece)),
    ],
)
def test_planted_bottleneck_is_named(
    job: JobConfig, monkeypatch: pytest.MonkeyPatch, stage: str, place: str, planted: object
) -> None:
    monkeypatch.setattr(place, planted)
    found = plan(job, probes=1)
    assert found.bottleneck == stage
    assert 0.5 < found.bottleneck_busy <= 1
    assert fired.count(stage) >= 5


@pytest.mark.parametrize("probes", [4, 5, 8, 100])
def test_more_probes_than_shards(job: JobConfig, monkeypatch: pytest.MonkeyPatch, probes: int) -> None:
    tokenized: list[str] = []

    def noted(self: Worker, task: Task) -> object:
        tokenized.append(task.shard.url)
        return tokenize(self, task)

    tokenize = Worker.tokenize
    monkeypatch.setattr(Worker, "tokenize", noted)
    found = plan(job, probes=probes)
    assert found.shards == 4
    assert len(tokenized) == len(set(tokenized)) == 4
