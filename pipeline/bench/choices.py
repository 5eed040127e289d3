"""What the user may choose, side by side: decode modes on one core, precisions and batch sizes on the device."""

from collections.abc import Iterator
from typing import get_args

from pipeline.bench.figures import ModelFigures
from pipeline.bench.material import Material
from pipeline.config import JobConfig
from pipeline.encoding import Precision
from pipeline.engine import Engine
from pipeline.engine.calibration import agreement, sweep
from pipeline.errors import ModelError
from pipeline.images import ImageConfig
from pipeline.images.catalogue import DecodeMode
from pipeline.storage import Storage
from pipeline.tokenizers import load_tokenizer

AGREEMENT_IMAGES = 8  # half floats may be slow where the hardware has none


def decode_modes(image: ImageConfig) -> Iterator[ImageConfig]:
    """The image configuration in each decode mode that the recipe has."""
    for mode in get_args(DecodeMode):
        if mode in image.facts.decode:
            yield image.model_copy(update={"decode": mode})


def model_alone(
    config: JobConfig, precision: Precision, material: Material, *, device: str, threads: int, seconds: float
) -> ModelFigures | None:
    """The model at one precision over batch sizes; None if the device does not have the precision."""
    source = config.model
    try:
        engine = Engine(
            load_tokenizer(source, Storage(config.storage)),
            device=device,
            precision=precision,
            image_size=config.image.size,
            threads=threads,
            compiled=source.compile,
            graphs=source.graphs,
        )
    except ModelError:
        return None
    try:
        rates = sweep(engine, material.images, None, seconds)
        return ModelFigures(precision.value, rates, agreement(engine, material.images[:AGREEMENT_IMAGES]))
    finally:
        engine.close()
