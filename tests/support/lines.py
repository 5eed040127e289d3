"""A production line without Ray: what an actor lends to `tokenize_shard`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipeline.encoding import ModelConfig
from pipeline.engine import Engine
from pipeline.images import ImageConfig
from pipeline.isolation import prepare_sample
from pipeline.meter import Meter
from pipeline.select import SelectConfig, Selection
from pipeline.storage import Storage
from pipeline.tokenize_shard import Line
from pipeline.tokenizers import load_tokenizer
from pipeline.tokens.schema import ColumnsConfig
from pipeline.tokens.writer import OutputConfig


@contextmanager
def production_line(
    model: Path,
    output: str,
    *,
    storage: Storage | None = None,
    batch_size: int = 4,
    fingerprint: str = "f" * 64,
    size: int = 32,
    columns: ColumnsConfig | None = None,
    select: SelectConfig | None = None,
    **image_options: object,
) -> Iterator[Line]:
    """A line on the CPU for images of `size` pixels."""
    meter, image = Meter(), ImageConfig(size=size, **image_options)
    engine = Engine(
        load_tokenizer(ModelConfig(path=str(model))),
        image_size=size,
        multiple=image.multiple if image.facts.varies else None,
        batch_size=batch_size,
        meter=meter,
    )
    with ThreadPoolExecutor(2) as decoders:
        yield Line(
            storage=storage or Storage(),
            engine=engine,
            decoders=decoders,
            meter=meter,
            image=image,
            columns=columns or ColumnsConfig(),
            output=OutputConfig(url=output, row_group_rows=8),
            fingerprint=fingerprint,
            decode=lambda key, members: prepare_sample(key, members, image, seed=0, select=select),
            selection=Selection.load(select or SelectConfig(), "json", Storage()),
        )
    engine.close()
