"""OUTPUTs made without a model: tokens that tell which row they are, written and published as a run does."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.config import JobConfig, job_document
from pipeline.encoding import Precision
from pipeline.errors import Reject, Stage
from pipeline.messages import Identity
from pipeline.output import Output
from pipeline.shards.manifest import Shard, shard_id
from pipeline.storage import Storage
from pipeline.tokens.schema import ColumnsConfig, Counts, PartFooter, RejectedSample, Row, TokenSpec
from pipeline.tokens.writer import OutputConfig, PartWriter

Tokens = Callable[[int, int, int, TokenSpec], np.ndarray]  # (shard, sample, view, spec) -> [h, w]
SPEC, COLUMNS = TokenSpec(1024, 2, 2), ColumnsConfig()


def telling_tokens(shard: int, sample: int, view: int, spec: TokenSpec) -> np.ndarray:
    """Tokens [h, w] that begin with shard, sample and view, so that each row is known by them."""
    tokens = np.zeros((spec.grid_height, spec.grid_width), np.int64)
    tokens.flat[:3] = shard, sample, view
    tokens.flat[3:] = (np.arange(tokens.size - 3) * 7 + shard * 31 + sample * 3 + view) % spec.codebook_size
    return tokens


@dataclass(frozen=True)
class Made:
    """How the rows of an OUTPUT are made.

    Attributes:
        views: of each sample.
        spec: codes and grid.
        group: rows of a row group.
        tokens: of a row.
        labelled: no label is missing.
        first_label: the lowest.
        keys: from the number of a sample in its shard to its key; None has `shard/number`.
        prefix: stands before every key.
        rejects: (shard, sample) of those that did not become rows.
        top: of every crop (pixels).
        columns: of the parts.
        fields: of a sample by its number, as `columns.fields` has them.
    """

    views: int = 1
    spec: TokenSpec = SPEC
    group: int = 4
    tokens: Tokens = telling_tokens
    labelled: bool = False
    first_label: int = 0
    keys: Callable[[int], str] | None = None
    prefix: str = ""
    rejects: frozenset[tuple[int, int]] = frozenset()
    top: float | None = None
    columns: ColumnsConfig = COLUMNS
    fields: Callable[[int], tuple[Any, ...]] = lambda _: ()

    def key(self, shard: int, sample: int) -> str:
        """Of a sample."""
        return self.prefix + (self.keys(sample) if self.keys else f"{shard}/{sample}")

    def rows(self, shard: int, samples: int) -> Iterator[tuple[Row, np.ndarray]]:
        """The rows of one shard, with their tokens [h, w]."""
        for i, view in product(range(samples), range(self.views)):
            if (shard, i) in self.rejects:
                continue
            caption = None if i % 3 == 2 else f"caption {shard} {i}"
            label = None if i % 7 == 6 and not self.labelled else self.first_label + i % 5
            crop, meta = (view if self.top is None else self.top, 0.0, 32.0, 32.0), json.dumps({"i": i})
            flip = view % 2 == 1
            row = Row(self.key(shard, i), i, view, 40, 50, crop, flip, caption, label, meta, self.fields(i))
            yield row, self.tokens(shard, i, view, self.spec)

    def write_part(self, path: Path, number: int, shard: Shard, samples: int, fingerprint: str) -> None:
        """The part of the shard of this number."""
        rows = list(self.rows(number, samples))
        about = {"id": shard.id, "url": shard.url, "size": shard.size, "etag": shard.etag}
        rejects = [
            RejectedSample(self.key(shard_of, i), i, Reject(Stage.DECODE, "corrupt"))
            for shard_of, i in sorted(self.rejects)
            if shard_of == number
        ]
        counts = Counts(samples, samples - len(rejects), len(rows), len(rejects))
        footer = PartFooter(fingerprint, about, self.spec, counts, rejects)
        output = OutputConfig(row_group_rows=self.group)
        with PartWriter(path, self.spec, self.columns, shard.url, output) as writer:
            for start in range(0, len(rows), self.group):
                some = rows[start : start + self.group]
                tokens = [tokens for _, tokens in some]
                writer.add([row for row, _ in some], tokens if self.spec.varies else np.stack(tokens))
            writer.finish(footer)


def make_run(
    output: Path | str,
    samples: Sequence[int] = (10, 7),
    *,
    finished: bool = True,
    model: str | Mapping[str, str] = "m",
    weights: str = "w1",
    recipe: str = "center-crop",
    **made: Any,
) -> str:
    """Write an OUTPUT with a shard of so many samples for each entry; returns its URL.

    Row (shard s, sample i) has key `s/i`, label i modulo 5 (none for every seventh), caption `caption s i` (none for
    every third).

    Args:
        output: folder or URL.
        samples: of each shard.
        finished: with accounts and _SUCCESS.
        model, weights, recipe: as job.json tells them; the model by its place, or by its keys.
        **made: see `Made`.
    """
    out, how = Output(Storage(), str(output)), Made(**made)
    config = JobConfig(
        shards=["x"], model=model, output=out.url, image={"size": 8 * (how.spec.grid_height or 32), "recipe": recipe}
    )
    found = Identity(weights, {"latent_channels": 4}, how.spec, "pillow-13")
    job = job_document(config, found, None, Precision.EXACT, 8)
    out.claim(json.loads(json.dumps(job)))
    urls = [f"s3://corpus/{number:05}.tar" for number in range(len(samples))]
    shards = [Shard(shard_id(url), url, 1000, "etag") for url in urls]
    out.extend_manifest(shards)
    with TemporaryDirectory() as folder:
        for number, (shard, count) in enumerate(zip(shards, samples, strict=True)):
            path = Path(folder, f"{number}.parquet")
            how.write_part(path, number, shard, count, job["fingerprint"])
            out.storage.create(f"{out.url}/tokens/{shard.id}.parquet", path)
    if finished:
        out.summarise(shards, {})
        out.storage.write(f"{out.url}/_SUCCESS", b"")
    return out.url
