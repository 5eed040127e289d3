"""What a run would take, before it is begun: list, freeze, probe a few shards in this process, extrapolate.

Nothing is written anywhere.
"""

import math
import os
from dataclasses import dataclass

from pipeline.config import JobConfig
from pipeline.errors import ShardError, StorageError, UsageError
from pipeline.images import ImageConfig
from pipeline.messages import Calibration, Identity
from pipeline.select import Selection
from pipeline.shards.manifest import Shard, freeze
from pipeline.shards.tar import TarReader
from pipeline.storage import Storage
from pipeline.worker import Worker, device_here

ROW_BYTES = 40  # of a row beside its tokens and texts, compressed: key, geometry, page headers (measured)
TEXT_RATIO = 0.35  # zstd on captions and JSON sidecars


@dataclass(frozen=True, slots=True)
class Plan:
    """The forecast.

    Attributes:
        shards, missing: listed; of them not there.
        input_bytes: of all shards.
        images: expected, from samples per byte in the probed shards.
        device: that was probed.
        model_rate, decode_rate: views/s of one actor, each stage alone.
        actor_rate: views/s of one actor, both stages together.
        actors: that the time is computed for.
        seconds: wall time of the run without start-up.
        output_bytes: of all parts.
        bottleneck: `model` or `decode`.
        tokens: expected in all.
    """

    shards: int
    missing: int
    input_bytes: int
    images: int
    device: str
    model_rate: float
    decode_rate: float
    actor_rate: float
    actors: int
    seconds: float
    output_bytes: int
    bottleneck: str
    tokens: int


def plan(config: JobConfig, probes: int = 2) -> Plan:
    """Forecast a run.

    Args:
        config: shards and model must be given; output need not be.
        probes: shards to read whole.

    Raises:
        UsageError: no shard could be read.
        ModelError: the model cannot be read.
    """
    storage = Storage(config.storage)
    config.check_model(storage)
    shards = freeze(storage, config.shards)
    there = [shard for shard in shards if shard.size]
    if not there:
        raise UsageError("none of the shards is there: nothing to plan")
    probed = [there[i * len(there) // probes] for i in range(min(probes, len(there)))]
    samples, text_bytes, read = _probe(storage, probed, config)
    device = device_here()
    actors = (config.cluster.actor_range or (1, 1))[1]
    cpus = config.cluster.cpus_per_actor or max(1, len(os.sched_getaffinity(0)) // actors)
    worker = Worker(config, cpus, device)
    found = worker.load()
    fixed = config.model.batch_size
    size = fixed if isinstance(fixed, int) else None
    measured = worker.measure(probed, size, config.model.fixed_precision)
    if measured is None:
        raise UsageError(f"no image could be read in {', '.join(shard.url for shard in probed)}")
    input_bytes = sum(shard.size or 0 for shard in there)
    images = round(samples * input_bytes / read)
    return _forecast(shards, input_bytes, images, measured, found, actors, text_bytes / max(1, samples), config.image)


def _probe(storage: Storage, probed: list[Shard], config: JobConfig) -> tuple[int, int, int]:
    """Samples that are wanted (unless by their size), bytes of their texts, and of the shards that could be read."""
    samples = text_bytes = read = 0
    stored = {config.columns.caption, config.columns.meta}
    selection = Selection.load(config.select, config.columns.meta, storage)
    for shard in probed:
        try:
            blob = shard.blob()
            with storage.stream(blob) as stream:
                for sample in TarReader(stream, url=shard.url, size=blob.size, limits=config.tar):
                    if selection.verdict(sample.key, sample.members):
                        continue
                    samples += 1
                    text_bytes += sum(len(data) for name, data in sample.members.items() if name in stored)
            read += blob.size
        except (ShardError, StorageError):
            continue  # the run will name it; the forecast rests on the others
    if not samples:
        raise UsageError(f"no samples could be read, or none is wanted, in {', '.join(shard.url for shard in probed)}")
    return samples, text_bytes, read


def _forecast(
    shards: list[Shard],
    input_bytes: int,
    images: int,
    measured: Calibration,
    found: Identity,
    actors: int,
    text_bytes: float,
    image: ImageConfig,
) -> Plan:
    model, decode, rows = measured.model_rate, measured.decode_rate, images * image.views
    spec = found.spec
    tokens_per_view = spec.tokens_per_view or image.view_pixels // found.downsample**2
    row = tokens_per_view * math.log2(spec.codebook_size) / 8 + ROW_BYTES + TEXT_RATIO * text_bytes
    return Plan(
        shards=len(shards),
        missing=sum(shard.size is None for shard in shards),
        input_bytes=input_bytes,
        images=images,
        device=measured.device,
        model_rate=model,
        decode_rate=decode,
        actor_rate=measured.together,
        actors=actors,
        seconds=rows / (measured.together * actors),
        output_bytes=round(rows * row),
        bottleneck="model" if model < decode else "decode",
        tokens=rows * tokens_per_view,
    )
