"""One benchmark of a tiny model, for all that is asked of its figures."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.bench import Bench, bench
from pipeline.config import JobConfig, resolve

ROUNDS = 2


@pytest.fixture(scope="session")
def job(tiny_model: Path, corpus: Path) -> JobConfig:
    """Ten small images a shard."""
    flags = {"shards": [str(corpus)], "model": str(tiny_model), "image.size": 32}
    return resolve(flags=flags, environment={})


@pytest.fixture(scope="session")
def steps() -> list[tuple[str, int, int]]:
    """What `found` said while it was at work."""
    return []


@pytest.fixture(scope="session")
def found(job: JobConfig, steps: list[tuple[str, int, int]]) -> Iterator[Bench]:
    """Its figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.engine.calibration.RATE_SECONDS", 0.0)
        yield bench(job, seconds=0.05, rounds=ROUNDS, on_step=lambda *step: steps.append(step))
