"""A production line without Ray: what an actor lends to `tokenize_shard`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipeline.engine import Engine
from pipeline.images import ImageConfig
from pipeline.isolation import prepare_sample
from pipeline.meter import Meter
from pipeline.model import VQModel
from pipeline.storage import Storage
from pipeline.tokenize_shard import Line
from pipeline.tokens.schema import ColumnsConfig
from pipeline.tokens.writer import OutputConfig


@contextmanager
def production_line(
    model: Path, output: str, *, storage: Storage | None = None, batch_size: int = 4, fingerprint: str = "f" * 64
) -> Iterator[Line]:
    """A line on the CPU for 32-pixel images."""
    meter = Meter()
    engine = Engine(VQModel.from_pretrained(model), image_size=32, batch_size=batch_size, meter=meter)
    with ThreadPoolExecutor(2) as decoders:
        yield Line(
            storage=storage or Storage(),
            engine=engine,
            decoders=decoders,
            meter=meter,
            image=ImageConfig(size=32),
            columns=ColumnsConfig(),
            output=OutputConfig(url=output, row_group_rows=8),
            fingerprint=fingerprint,
            decode=lambda members: prepare_sample(members, ImageConfig(size=32)),
        )
    engine.close()
