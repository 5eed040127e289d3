"""A trained model, and what it makes of a healthy corpus: made once."""

from collections.abc import Iterator

import pytest

from pipeline.engine import Engine
from pipeline.model import VQModel
from pipeline.qa.evidence import QaReport
from tests.qa.parts import DEMO_MODEL, inspected, photo_crops

SIZE = 96  # pixels: grids of 12 x 12
SHARDS, SAMPLES = 9, 48


@pytest.fixture(scope="session")
def demo_engine() -> Iterator[Engine]:
    """The demo's model on the CPU."""
    engine = Engine(VQModel.from_pretrained(DEMO_MODEL), image_size=SIZE, batch_size=16)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def healthy_reports(demo_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> list[QaReport]:
    """Nine shards of 48 crops of photographs."""
    folder = tmp_path_factory.mktemp("healthy")
    return [
        inspected(folder, photo_crops(SAMPLES, SIZE, seed=shard), demo_engine, name=f"{shard:05d}").report
        for shard in range(SHARDS)
    ]
