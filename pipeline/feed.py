"""The first half of the heart: a shard from URL to views in tar order, without a model, on any machine with cores.

    stream -> strict tar walk -> decode pool -> views

What an actor does for itself, a decode actor does for others (`chunks`), and `received` takes it up again: the views
are the same both ways, so the parts are.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.errors import Cancelled, Filtered, Reject
from pipeline.images import ImageConfig, Prepared, View
from pipeline.meter import Meter, Part
from pipeline.prefetch import ordered_map
from pipeline.schedule import Failure
from pipeline.select import Selection
from pipeline.shards.manifest import Shard
from pipeline.shards.tar import Sample, TarLimits, TarReader
from pipeline.sidecars import Sidecars, read_sidecars
from pipeline.storage import ByteStream, Storage
from pipeline.tokens.schema import ColumnsConfig, Counts, RejectedSample, Row

DECODE_BUDGET = 256 << 20  # bytes of samples, encoded and decoded, between tar and device: two large batches of a GPU
CORE_BUDGET = 16 << 20  # likewise for each core, where it is cores that take or give them
CHUNK_BYTES = 8 << 20  # of pixels in one message between two actors


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What turns shards into views, shared by the shards in flight.

    `decode_budget` bounds one shard's samples between tar and device, encoded and decoded (bytes).
    """

    storage: Storage
    decoders: Executor
    meter: Meter
    image: ImageConfig
    columns: ColumnsConfig
    decode: Callable[[str, Mapping[str, bytes]], Prepared | Reject | Filtered]
    tar: TarLimits = field(default_factory=TarLimits)
    decode_budget: int = DECODE_BUDGET
    selection: Selection = field(default_factory=Selection)


class Attempt:
    """One try at a shard, seen from outside: whether it moves, and how to stop it.

    Attributes:
        moved: grows with every read, sample, batch and piece of an upload; only its change means anything.
        decoding: samples out of the tar, not yet taken from the decode pool.
        encoding: views out of the decode pool, not yet tokens.
        stop: set it, and the attempt ends at its next step.
    """

    def __init__(self) -> None:
        self.moved = self.decoding = self.encoding = 0
        self.stop = threading.Event()

    def touch(self) -> None:
        """Something moved, where it would not do to end the attempt."""
        self.moved += 1

    def step(self) -> None:
        """Something moved.

        Raises:
            Cancelled: the attempt is no longer wanted.
        """
        self.touch()
        if self.stop.is_set():
            raise Cancelled("another attempt committed this shard")


def _lists() -> defaultdict[str, list[int]]:
    return defaultdict(list)  # a lambda could not travel between actors


@dataclass(slots=True)
class Accounts:
    """What is counted while a shard goes through; `rows` on the way to the part, the others before."""

    samples: int = 0
    tokenized: int = 0
    rows: int = 0
    rejects: list[RejectedSample] = field(default_factory=list)
    filtered: defaultdict[str, list[int]] = field(default_factory=_lists)
    warnings: Counter[str] = field(default_factory=Counter)
    filled: set[str] = field(default_factory=set)

    def take(self, other: "Accounts") -> None:
        """Become what another actor has counted of the same shard."""
        self.samples, self.tokenized, self.rejects = other.samples, other.tokenized, other.rejects
        self.filtered, self.warnings, self.filled = other.filtered, other.warnings, other.filled

    def counts(self) -> Counts:
        filtered = sum(map(len, self.filtered.values()))
        return Counts(self.samples, self.tokenized, self.rows, len(self.rejects), filtered)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some views in a row, as they travel between actors.

    Attributes:
        rows: n of them.
        images: uint8 [n, H, W, 3].
        busy: seconds of work by stage since the last chunk.
        bytes_read: likewise.
    """

    rows: list[Row]
    images: npt.NDArray[np.uint8]
    busy: Mapping[str, float]
    bytes_read: int


Fed = Chunk | Accounts | Failure  # what a decode actor sends: chunks, at last the accounts; or why there are none
Feed = Callable[[Shard], Iterator[Fed]]
Views = Generator[tuple[Row, View], None, None]


class FeedFailed(Exception):
    """A decode actor could not read the shard; `failure` says why, as if it had been tried here."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def chunks(shard: Shard, intake: Intake, attempt: Attempt) -> Iterator[Chunk | Accounts]:
    """A shard in chunks of views of one shape each, then its accounts. `intake.meter` must be this shard's alone.

    Raises:
        As `views`.
    """
    accounts, held, seen = Accounts(), list[tuple[Row, View]](), intake.meter.read()

    def chunk() -> Chunk:
        nonlocal seen
        before, seen = seen, intake.meter.read()
        busy = {part: seconds - before.busy.get(part, 0.0) for part, seconds in seen.busy.items()}
        images = np.stack([view.pixels for _, view in held])
        return Chunk([row for row, _ in held], images, busy, seen.bytes_read - before.bytes_read)

    for row, view in views(shard, intake, accounts, attempt):
        if held and (held[0][1].pixels.shape != view.pixels.shape or len(held) * view.pixels.nbytes >= CHUNK_BYTES):
            yield chunk()
            held = []
        held.append((row, view))
    if held:
        yield chunk()
    yield accounts


def received(fed: Iterable[Fed], meter: Meter, accounts: Accounts, attempt: Attempt) -> Views:
    """The views of a shard that another actor decodes; the work done there is counted here.

    Raises:
        Cancelled: `attempt.stop` was set.
        FeedFailed: the other actor could not read the shard, or died.
    """
    for one in fed:
        attempt.step()
        if isinstance(one, Failure):
            raise FeedFailed(one)
        if isinstance(one, Accounts):
            accounts.take(one)
            meter.count(samples=one.samples)
            for rejected in one.rejects:
                meter.reject(rejected.reject.reason)
            continue
        for part, seconds in one.busy.items():
            meter.spend(Part(part), seconds)
        meter.count(bytes_read=one.bytes_read)
        attempt.encoding += len(one.rows)
        for row, pixels in zip(one.rows, one.images, strict=True):
            yield row, View(pixels, row.crop, row.flip, row.view)


@dataclass(slots=True)
class Waited:
    """Views passed on, with the time that was spent waiting for them (seconds)."""

    views: Iterator[tuple[Row, View]]
    seconds: float = 0.0

    def __iter__(self) -> Iterator[tuple[Row, View]]:
        return self

    def __next__(self) -> tuple[Row, View]:
        begun = time.perf_counter()
        try:
            return next(self.views)
        finally:
            self.seconds += time.perf_counter() - begun


class _Watched:
    """A stream whose every read is a sign of life."""

    def __init__(self, stream: ByteStream, attempt: Attempt) -> None:
        self._stream, self._attempt = stream, attempt

    def read(self, size: int, /) -> bytes:
        self._attempt.step()
        return self._stream.read(size)


def views(shard: Shard, intake: Intake, accounts: Accounts, attempt: Attempt) -> Views:
    """Every view of every good sample, in tar order; bad and unwanted samples go to the accounts."""
    blob = shard.blob()
    with intake.storage.stream(blob) as stream:
        reader = TarReader(_Watched(stream, attempt), url=shard.url, size=blob.size, limits=intake.tar)
        work = ordered_map(
            intake.decoders,
            lambda sample: _prepare(sample, shard, intake),
            _fetched(reader, intake.meter, attempt),
            weigh=lambda sample: _weight(sample, intake.image),
            budget=intake.decode_budget,
        )
        for sample, prepared in work:
            attempt.step()
            attempt.decoding -= 1
            accounts.samples += 1
            intake.meter.count(samples=1)
            if isinstance(prepared, Reject):
                intake.meter.reject(prepared.reason)
                accounts.rejects.append(RejectedSample(_key(sample), sample.index, prepared))
                continue
            if isinstance(prepared, Filtered):
                accounts.filtered[prepared.rule].append(sample.index)
                continue
            accounts.tokenized += 1
            sidecars = read_sidecars(sample.members, intake.columns, accounts.warnings)
            accounts.filled |= sidecars.filled(intake.columns)
            attempt.encoding += len(prepared.views)
            yield from ((row_of(sample, prepared, view, sidecars), view) for view in prepared.views)
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


def _prepare(sample: Sample, shard: Shard, intake: Intake) -> Prepared | Reject | Filtered:
    key = _key(sample)
    with intake.meter.busy(Part.DECODE):
        return intake.selection.verdict(shard.url, key, sample.members) or intake.decode(key, sample.members)


def _weight(sample: Sample, image: ImageConfig) -> int:
    return sum(map(len, sample.members.values())) + image.views * 3 * image.view_pixels


def row_of(sample: Sample, prepared: Prepared, view: View, sidecars: Sidecars) -> Row:
    """The row of a view, still without its tokens."""
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
