"""What the stages are measured on: the beginning of the user's own shards, in memory, and what stages make of it.

An image is one view of a sample here, as in a run's rates: a recipe of ten crops makes ten images of each.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from pipeline.engine import Images, Indices
from pipeline.errors import ShardError, StorageError, UsageError
from pipeline.feed import row_of
from pipeline.images import Prepared, View
from pipeline.shards.manifest import Shard
from pipeline.shards.tar import Sample, TarLimits, TarReader
from pipeline.sidecars import read_sidecars
from pipeline.storage import ByteStream
from pipeline.tokenize_shard import Line
from pipeline.tokens.schema import Row

TAR_BYTES = 64 << 20  # of a shard that are walked again and again
SAMPLES = 256  # that are decoded again and again
BATCH_IMAGES = 32  # real images from which batches are made
LARGEST_PART = 4000  # rows; two row groups


@dataclass(frozen=True)
class Material:
    """Input of each stage.

    Attributes:
        shard: where it comes from.
        tar: the first bytes of the shard, as stored.
        walked: samples that lie whole in `tar`.
        walked_bytes: of the shard that those take.
        samples: the first of them.
        views: images of each sample.
        images: [n, size, size, 3], made of the first samples.
        rows: of a part as large as the shard's, up to `LARGEST_PART`.
        tokens: [rows, h, w], each drawn by lot from the real ones, so that no two grids are alike.
        limits: of the tar.
    """

    shard: Shard
    tar: bytes
    walked: int
    walked_bytes: int
    samples: Sequence[Sample]
    views: int
    images: Images
    rows: Sequence[Row]
    tokens: Indices
    limits: TarLimits

    @property
    def bytes_per_image(self) -> float:
        """Of the shard."""
        return self.walked_bytes / (self.walked * self.views)


class _Kept:
    """A stream that keeps what was read from it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream, self.data = stream, io.BytesIO()

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self.data.write(data)
        return data


def gather(line: Line, shards: Sequence[Shard]) -> Material:
    """Read the beginning of the first shard that has images.

    Args:
        line: a started actor's.
        shards: the user's, in the order to try them.

    Raises:
        UsageError: none of them gives an image.
    """
    if line.engine.multiple:
        raise UsageError("images of several shapes cannot be measured apart; choose an image.recipe of squares")
    problems = []
    for shard in shards:
        try:
            kept, samples, held = _read(line, shard)
        except (ShardError, StorageError) as error:
            problems.append(str(error))
            continue
        prepared = [line.decode(sample.key, sample.members) for sample in samples[:BATCH_IMAGES]]
        good = [(sample, p) for sample, p in zip(samples, prepared, strict=False) if isinstance(p, Prepared)]
        if good:
            return _material(line, shard, kept, samples, held, good)
        problems.append(f"{shard.url}: no image in its first {len(prepared)} samples")
    raise UsageError(f"there is nothing to measure: {'; '.join(problems)}")


def _read(line: Line, shard: Shard) -> tuple[bytes, list[Sample], int]:
    """The first bytes of a shard, the samples in them, and how many bytes those samples take."""
    blob = shard.blob()
    with line.storage.stream(blob) as stream:
        kept = _Kept(stream)
        reader = TarReader(kept, url=shard.url, size=blob.size, limits=line.tar)
        samples = []
        for sample in reader:
            samples.append(sample)
            if reader.stats.bytes_read > TAR_BYTES:
                break
        return kept.data.getvalue(), samples, reader.stats.bytes_read


def _material(
    line: Line, shard: Shard, tar: bytes, samples: list[Sample], held: int, good: list[tuple[Sample, Prepared]]
) -> Material:
    views = [(_row(line, sample, prepared, view), view.pixels) for sample, prepared in good for view in prepared.views]
    images, size = np.stack([pixels for _, pixels in views]), line.engine.batch_size
    found = np.concatenate([line.engine.encode(images[i : i + size]) for i in range(0, len(images), size)])
    per_sample = line.image.views
    count = min(LARGEST_PART, max(1, round(per_sample * len(samples) * (shard.size or held) / held)))
    rows = [replace(views[number % len(views)][0], sample_index=number, view=0) for number in range(count)]
    tokens = np.random.default_rng(0).choice(found.reshape(-1), (count, *found.shape[1:]))
    return Material(shard, tar, len(samples), held, samples[:SAMPLES], per_sample, images, rows, tokens, line.tar)


def _row(line: Line, sample: Sample, prepared: Prepared, view: View) -> Row:
    return row_of(sample, prepared, view, read_sidecars(sample.members, line.columns, Counter()))


def walk(material: Material) -> int:
    """Read the samples out of the tar once more; returns the bytes that they take."""
    reader = TarReader(io.BytesIO(material.tar), url=material.shard.url, size=None, limits=material.limits)
    count = sum(1 for _ in islice(reader, material.walked))
    assert count == material.walked, f"{material.shard.url}: {count} of {material.walked} samples came again"
    return material.walked_bytes
