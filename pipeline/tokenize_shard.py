"""The heart: one shard from URL to published part.

    stream -> strict tar walk -> decode pool -> fixed batches -> device -> rows in tar order -> Parquet -> QA -> commit

Everything is bounded: read-ahead by the storage, samples in decoding by `Line.decode_budget`, batches on the device by
`batches`, rows by the row group. Runs without Ray, on a CPU, in a test.
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.batches import InOrder, encoded
from pipeline.commit import Outcome, commit
from pipeline.engine import Engine
from pipeline.errors import Cancelled, Filtered, Reject
from pipeline.images import ImageConfig, Prepared, View
from pipeline.messages import ShardReport
from pipeline.meter import Meter, Part
from pipeline.prefetch import ordered_map
from pipeline.qa.config import QaConfig
from pipeline.qa.evidence import QaReport, publish_evidence
from pipeline.qa.inspect import inspect_shard
from pipeline.qa.networks import Networks
from pipeline.qa.sampling import Sampler
from pipeline.scratch import draft_folder
from pipeline.select import Selection
from pipeline.shards.manifest import Shard
from pipeline.shards.tar import Sample, TarLimits, TarReader
from pipeline.sidecars import Sidecars, read_sidecars
from pipeline.storage import ByteStream, Storage
from pipeline.tokens.schema import ColumnsConfig, Counts, PartFooter, RejectedSample, Row
from pipeline.tokens.writer import OutputConfig, PartWriter
from pipeline.urls import join

DECODE_BUDGET = 256 << 20  # bytes of samples, encoded and decoded, between tar and device: two large batches of a GPU


@dataclass(frozen=True)
class Line:
    """What an actor lends to every shard it works on: the production line, shared by the shards in flight.

    `decode_budget` bounds one shard's samples between tar and device, encoded and decoded (bytes).
    """

    storage: Storage
    engine: Engine
    decoders: Executor
    meter: Meter
    image: ImageConfig
    columns: ColumnsConfig
    output: OutputConfig
    fingerprint: str
    decode: Callable[[str, Mapping[str, bytes]], Prepared | Reject | Filtered]
    tar: TarLimits = field(default_factory=TarLimits)
    scratch: Path | None = None
    decode_budget: int = DECODE_BUDGET
    qa: QaConfig = field(default_factory=QaConfig)
    networks: Networks = field(default_factory=Networks)
    selection: Selection = field(default_factory=Selection)


class Attempt:
    """One try at a shard, seen from outside: whether it moves, and how to stop it.

    Attributes:
        moved: grows with every read, sample and batch; only its change means anything.
        decoding: samples out of the tar, not yet taken from the decode pool.
        encoding: views out of the decode pool, not yet tokens.
        stop: set it, and the attempt ends at its next step.
    """

    def __init__(self) -> None:
        self.moved = self.decoding = self.encoding = 0
        self.stop = threading.Event()

    def step(self) -> None:
        """Something moved.

        Raises:
            Cancelled: the attempt is no longer wanted.
        """
        self.moved += 1
        if self.stop.is_set():
            raise Cancelled("another attempt committed this shard")


@dataclass(slots=True)
class _Accounts:
    """What is counted while a shard goes through."""

    samples: int = 0
    tokenized: int = 0
    rows: int = 0
    rejects: list[RejectedSample] = field(default_factory=list)
    filtered: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    warnings: Counter[str] = field(default_factory=Counter)
    filled: set[str] = field(default_factory=set)

    def counts(self) -> Counts:
        filtered = sum(map(len, self.filtered.values()))
        return Counts(self.samples, self.tokenized, self.rows, len(self.rejects), filtered)


def tokenize_shard(shard: Shard, line: Line, attempt: Attempt | None = None, *, replace: bool = False) -> ShardReport:
    """Tokenize one shard and publish its part.

    Args:
        shard: what to tokenize.
        line: what to do it with.
        attempt: to watch and stop this try from another thread.
        replace: put the part in the place of the one that is there, in one step.

    Raises:
        Cancelled: `attempt.stop` was set; nothing was published.
        ShardError: the shard as a whole is bad; nothing was published.
        StorageError: the store failed; whether the part was published is unknown.
        FingerprintMismatch: the part exists already with tokens of another configuration.
    """
    accounts, attempt = _Accounts(), attempt or Attempt()
    with draft_folder(line.scratch) as folder:
        path = folder / f"{shard.id}.parquet"
        sampler = (
            Sampler(line.qa.samples_per_shard, line.engine.spec.codebook_size) if line.qa.samples_per_shard else None
        )
        footer = _draft(path, shard, line, accounts, attempt, sampler)
        attempt.step()
        qa = _inspected(path, footer, line, sampler) if sampler else None
        attempt.step()  # the store may now use up the time that it has for one request
        outcome = _published(path, footer, line, attempt, replace=replace)
    return ShardReport(footer.counts, outcome, frozenset(accounts.filled), qa)


def _draft(
    path: Path, shard: Shard, line: Line, accounts: _Accounts, attempt: Attempt, sampler: Sampler | None
) -> PartFooter:
    """Write the whole part to local disk, and check it."""
    with PartWriter(path, line.engine.spec, line.columns, shard.url, line.output) as writer:
        in_order = InOrder()
        for batch, encoding in encoded(_views(shard, line, accounts, attempt), line.engine):
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


def _inspected(path: Path, footer: PartFooter, line: Line, sampler: Sampler) -> QaReport:
    """Look at the draft, and leave the evidence in OUTPUT: before the part, so that no part is without."""
    with line.meter.busy(Part.INSPECT):
        evidence = inspect_shard(path, footer, sampler, line.engine, line.networks)
    with line.meter.busy(Part.PUBLISH):
        publish_evidence(line.storage, line.output.url, evidence, path.parent)
    return evidence.report


def _published(path: Path, footer: PartFooter, line: Line, attempt: Attempt, *, replace: bool) -> Outcome:
    """Put the part under its name."""
    url = join(line.output.url, "tokens", path.name)
    with line.meter.busy(Part.PUBLISH):
        if replace:
            line.storage.put(url, path)
            return Outcome.DONE
        overwrite = line.output.allow_overwrite_commit
        return commit(line.storage, path, url, footer, overwrite=overwrite, on_doubt=attempt.step)


class _Watched:
    """A stream whose every read is a sign of life."""

    def __init__(self, stream: ByteStream, attempt: Attempt) -> None:
        self._stream, self._attempt = stream, attempt

    def read(self, size: int, /) -> bytes:
        self._attempt.step()
        return self._stream.read(size)


def _views(shard: Shard, line: Line, accounts: _Accounts, attempt: Attempt) -> Iterator[tuple[Row, View]]:
    """Every view of every good sample, in tar order; bad and unwanted samples go to the accounts."""
    blob = shard.blob()
    with line.storage.stream(blob) as stream:
        reader = TarReader(_Watched(stream, attempt), url=shard.url, size=blob.size, limits=line.tar)
        work = ordered_map(
            line.decoders,
            lambda sample: _prepare(sample, line),
            _fetched(reader, line.meter, attempt),
            weigh=lambda sample: _weight(sample, line.image),
            budget=line.decode_budget,
        )
        for sample, prepared in work:
            attempt.step()
            attempt.decoding -= 1
            accounts.samples += 1
            line.meter.count(samples=1)
            if isinstance(prepared, Reject):
                line.meter.reject(prepared.reason)
                accounts.rejects.append(RejectedSample(_key(sample), sample.index, prepared))
                continue
            if isinstance(prepared, Filtered):
                accounts.filtered[prepared.rule].append(sample.index)
                continue
            accounts.tokenized += 1
            sidecars = read_sidecars(sample.members, line.columns, accounts.warnings)
            accounts.filled |= sidecars.filled(line.columns)
            attempt.encoding += len(prepared.views)
            yield from ((_row(sample, prepared, view, sidecars), view) for view in prepared.views)
        accounts.warnings.update(reader.stats.warnings)
        accounts.warnings.update({f"skipped_{kind}": count for kind, count in reader.stats.skipped.items()})


def _fetched(reader: TarReader, meter: Meter, attempt: Attempt) -> Iterator[Sample]:
    """The samples of the tar, with the time to get at them counted."""
    samples, seen = iter(reader), 0
    while True:
        with meter.busy(Part.FETCH):
            sample = next(samples, None)
        meter.count(bytes_read=reader.stats.bytes_read - seen)
        seen = reader.stats.bytes_read
        if sample is None:
            return
        attempt.decoding += 1
        yield sample


def _prepare(sample: Sample, line: Line) -> Prepared | Reject | Filtered:
    key = _key(sample)
    with line.meter.busy(Part.DECODE):
        return line.selection.verdict(key, sample.members) or line.decode(key, sample.members)


def _weight(sample: Sample, image: ImageConfig) -> int:
    return sum(map(len, sample.members.values())) + image.views * 3 * image.view_pixels


def _row(sample: Sample, prepared: Prepared, view: View, sidecars: Sidecars) -> Row:
    return Row(
        key=_key(sample),
        sample_index=sample.index,
        view=view.index,
        height=prepared.height,
        width=prepared.width,
        crop=view.crop,
        flip=view.flip,
        caption=sidecars.caption,
        label=sidecars.label,
        meta=sidecars.meta,
        fields=sidecars.fields,
    )


def _key(sample: Sample) -> str:
    """The key as valid UTF-8: bytes that are not are spelled `\\xff`, as neither Parquet nor JSON could hold them."""
    return sample.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
