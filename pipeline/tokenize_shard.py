"""The heart: one shard from URL to published part.

    stream -> strict tar walk -> decode pool -> fixed batches -> device -> rows in tar order -> Parquet -> QA -> commit

Everything is bounded: read-ahead by the storage, samples in decoding by `Line.decode_budget`, batches on the device by
`batches`, rows by the row group. Runs without Ray, on a CPU, in a test.
"""

import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.commit import Outcome, commit
from pipeline.engine import Engine
from pipeline.engine.batches import InOrder, encoded
from pipeline.feed import Accounts, Attempt, Feed, Intake, Waited, received, views
from pipeline.messages import ShardReport, Supply
from pipeline.meter import Part
from pipeline.qa.config import QaConfig
from pipeline.qa.evidence import QaReport, publish_evidence
from pipeline.qa.inspect import inspect_shard
from pipeline.qa.networks import Networks
from pipeline.qa.sampling import Sampler
from pipeline.scratch import draft_folder
from pipeline.shards.manifest import Shard
from pipeline.tokens.schema import PartFooter
from pipeline.tokens.writer import OutputConfig, PartWriter
from pipeline.urls import join


@dataclass(frozen=True, kw_only=True)
class Line(Intake):
    """What an actor lends to every shard it works on: the production line, shared by the shards in flight."""

    engine: Engine
    output: OutputConfig
    fingerprint: str
    scratch: Path | None = None
    qa: QaConfig = field(default_factory=QaConfig)
    networks: Networks = field(default_factory=Networks)


def tokenize_shard(
    shard: Shard, line: Line, attempt: Attempt | None = None, *, replace: bool = False, feed: Feed | None = None
) -> ShardReport:
    """Tokenize one shard and publish its part.

    Args:
        shard: what to tokenize.
        line: what to do it with.
        attempt: to watch and stop this try from another thread.
        replace: put the part in the place of the one that is there, in one step.
        feed: fetches and decodes the shard elsewhere; None does it here.

    Raises:
        Cancelled: `attempt.stop` was set; nothing was published.
        FeedFailed: `feed` could not give the shard; nothing was published.
        ShardError: the shard as a whole is bad; nothing was published.
        StorageError: the store failed; whether the part was published is unknown.
        FingerprintMismatch: the part exists already with tokens of another configuration.
    """
    accounts, attempt = Accounts(), attempt or Attempt()
    with draft_folder(line.scratch) as folder:
        path = folder / f"{shard.id}.parquet"
        sampler = (
            Sampler(line.qa.samples_per_shard, line.engine.spec.codebook_size) if line.qa.samples_per_shard else None
        )
        fed = received(feed(shard), line.meter, accounts, attempt) if feed else views(shard, line, accounts, attempt)
        with closing(fed):  # here: left to the garbage collector it may end in the thread that its requests wait for
            begun, waited = time.perf_counter(), Waited(fed)
            footer = _draft(path, shard, line, accounts, attempt, sampler, waited)
            supply = Supply(feed is not None, footer.counts.rows, waited.seconds, time.perf_counter() - begun)
        attempt.step()
        qa = _inspected(path, footer, line, attempt, sampler) if sampler else None
        attempt.step()  # the store may now use up the time that it has for one request
        outcome = _published(path, footer, line, attempt, replace=replace)
    return ShardReport(footer.counts, outcome, frozenset(accounts.filled), qa, supply, line.meter.read())


def _draft(
    path: Path, shard: Shard, line: Line, accounts: Accounts, attempt: Attempt, sampler: Sampler | None, pixels: Waited
) -> PartFooter:
    """Write the whole part to local disk, and check it."""
    with PartWriter(path, line.engine.spec, line.columns, shard.url, line.output) as writer:
        in_order = InOrder()
        for batch, encoding in encoded(pixels, line.engine):
            tokens = encoding.result().indices()
            attempt.step()
            with line.meter.busy(Part.WRITE):
                writer.add(*in_order.ready(batch, tokens))
            if sampler:
                with line.meter.busy(Part.INSPECT):
                    sampler.add(batch.rows, batch.images, tokens)
            accounts.rows += len(batch.rows)
            attempt.encoding -= len(batch.rows)
            line.meter.count(images=len(batch.rows), tokens=tokens.size)
        footer = PartFooter(
            fingerprint=line.fingerprint,
            shard={"id": shard.id, "url": shard.url, "size": shard.size, "etag": shard.etag},
            spec=line.engine.spec,
            counts=accounts.counts(),
            rejects=accounts.rejects,
            filtered=accounts.filtered,
            warnings=dict(accounts.warnings),
        )
        with line.meter.busy(Part.WRITE):
            writer.finish(footer)
    return footer


def _inspected(path: Path, footer: PartFooter, line: Line, attempt: Attempt, sampler: Sampler) -> QaReport:
    """Look at the draft, and leave the evidence in OUTPUT: before the part, so that no part is without."""
    with line.meter.busy(Part.INSPECT):
        evidence = inspect_shard(path, footer, sampler, line.engine, line.networks)
    with line.meter.busy(Part.PUBLISH):
        publish_evidence(line.storage.watched(attempt.touch), line.output.url, evidence, path.parent)
    return evidence.report


def _published(path: Path, footer: PartFooter, line: Line, attempt: Attempt, *, replace: bool) -> Outcome:
    """Put the part under its name."""
    url, storage = join(line.output.url, "tokens", path.name), line.storage.watched(attempt.touch)
    with line.meter.busy(Part.PUBLISH):
        if replace:
            storage.put(url, path)
            return Outcome.DONE
        overwrite = line.output.allow_overwrite_commit
        return commit(storage, path, url, footer, overwrite=overwrite, on_doubt=attempt.step)
