"""Each stage of an actor alone, by the code that a run uses."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np

from pipeline.bench.material import Material, walk
from pipeline.bench.measure import Taken, repeat
from pipeline.engine import Engine, Images, Indices
from pipeline.images import ImageConfig
from pipeline.isolation import prepare_sample
from pipeline.qa.evidence import publish_evidence
from pipeline.qa.inspect import inspect_shard
from pipeline.qa.sampling import Sampler
from pipeline.shards.tar import Sample
from pipeline.tokenize_shard import Line
from pipeline.tokens.schema import Counts, PartFooter, Row
from pipeline.tokens.writer import PartWriter

READ_BYTES = 1 << 20  # as the tar reader takes them
BATCHES_AHEAD = 2  # as in a run


class Stages:
    """The stages of one started actor.

    Args:
        line: the actor's.
        material: what to measure on.
        streams: shards that the actor reads at once.
        folder: on a local disk, for a part and its evidence.
    """

    def __init__(self, line: Line, material: Material, *, streams: int, folder: Path) -> None:
        self._line, self._material, self._streams, self._folder = line, material, streams, folder

    def fetch(self, seconds: float) -> Taken:
        """Bytes out of the store, with as many streams at once as in a run."""
        end = time.perf_counter() + seconds
        with ThreadPoolExecutor(self._streams) as pool:
            return repeat(lambda: sum(pool.map(self._stream, [end] * self._streams)), 0)

    def tar(self, seconds: float) -> Taken:
        """Bytes of a shard in memory to samples, by one thread."""
        return repeat(lambda: walk(self._material), seconds)

    def decode(self, seconds: float) -> Taken:
        """Samples to pixels, on all decode threads."""
        samples = self._material.samples
        return repeat(lambda: sum(self._line.decoders.map(self._decode, samples)), seconds)

    def decode_on_one_core(self, seconds: float, image: ImageConfig) -> Taken:
        """Samples to pixels in this thread, as `image` says."""
        samples = cycle(self._material.samples)

        def one() -> int:
            sample = next(samples)
            prepare_sample(sample.key, sample.members, image, seed=0)
            return self._material.views

        return repeat(one, seconds)

    def encode(self, seconds: float) -> Taken:
        """Pixels to tokens on the device."""
        return encode(self._line.engine, self._material.images, seconds)

    def write(self, seconds: float) -> Taken:
        """Rows and tokens to a part on the local disk, read back and compared."""
        return repeat(lambda: self._write().counts.rows, seconds)

    def inspect(self, seconds: float) -> Taken:
        """QA of such a part: choose, count, decode a few, leave the evidence."""
        return repeat(partial(self._inspect, self._write()), seconds)

    def _stream(self, end: float) -> int:
        """Read the shard again and again until `end` (of `time.perf_counter`); returns the bytes."""
        read, blob = 0, self._material.shard.blob()
        while time.perf_counter() < end or not read:
            with self._line.storage.stream(blob) as stream:
                while (data := stream.read(READ_BYTES)) and time.perf_counter() < end:
                    read += len(data)
        return read

    def _decode(self, sample: Sample) -> int:
        self._line.decode(sample.key, sample.members)
        return self._material.views

    def _write(self) -> PartFooter:
        line, rows = self._line, len(self._material.rows)
        footer = PartFooter(
            line.fingerprint, {"id": "bench", "url": "bench"}, line.engine.spec, Counts(rows, rows, rows, 0)
        )
        with PartWriter(self._part, line.engine.spec, line.columns, self._material.shard.url, line.output) as writer:
            for some, _, tokens in self._batches():
                writer.add(some, tokens)
            writer.finish(footer)
        return footer

    def _inspect(self, footer: PartFooter) -> int:
        line = self._line
        sampler = Sampler(line.qa.samples_per_shard, footer.spec.codebook_size)
        for batch in self._batches():
            sampler.add(*batch)
        evidence = inspect_shard(self._part, footer, sampler, line.engine, line.networks)
        publish_evidence(line.storage, str(self._folder), evidence, self._folder)
        return footer.counts.rows

    def _batches(self) -> Iterator[tuple[list[Row], Images, Indices]]:
        """The rows in batches, each with images and tokens."""
        size, material = self._line.engine.batch_size, self._material
        images = np.resize(material.images, (size, *material.images.shape[1:]))
        for start in range(0, len(material.rows), size):
            some = list(material.rows[start : start + size])
            yield some, images[: len(some)], material.tokens[start : start + size]

    @property
    def _part(self) -> Path:
        return self._folder / "bench.parquet"


def encode(engine: Engine, images: Images, seconds: float) -> Taken:
    """Encode batches of `images` again and again; the device always has the next one at hand."""
    size = engine.batch_size
    batch = np.resize(images, (size, *images.shape[1:]))
    ahead = [engine.submit(batch) for _ in range(BATCHES_AHEAD)]

    def one() -> int:
        ahead.append(engine.submit(batch))
        ahead.pop(0).result().indices()
        return size

    taken = repeat(one, seconds)
    for rest in ahead:
        rest.result().indices()
    return taken
