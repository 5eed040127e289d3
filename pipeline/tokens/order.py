"""The order in which an epoch gives its rows, and who gives which of them. Pure: no file is opened here.

An epoch is one sequence of rows. Row groups come in an order drawn from (seed, epoch); neighbours in it are taken
together into blocks of about `buffer_rows` rows, and the rows of a block are shuffled. So a reader needs one block at a
time, reads whole row groups, and the sequence does not depend on how many readers there are.

A reader (one worker of one rank) gives a range of that sequence, cut at whole batches. What is left of an epoch is
therefore a list of ranges: a reader's progress shortens its own, and the lists of all readers together are what another
number of readers divides anew. Nothing is repeated and nothing is lost, by arithmetic.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import UsageError
from pipeline.tokens.parts import Parts

Range = tuple[int, int]  # [start, stop) in the sequence of an epoch


class Sampling(BaseModel):
    """Which rows an epoch gives, in which order, and how many at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(256, gt=0, description="rows of a batch; the last one of an epoch has what is left (rows)")
    shuffle: bool = Field(True, description="another order for each (seed, epoch); false: as the parts are stored")
    seed: int = Field(0, ge=0, description="of the order (a number)")
    buffer_rows: int = Field(
        20_000, gt=0, description="rows that are shuffled among each other; a reader holds two such blocks (rows)"
    )
    view: int | Literal["all", "one"] = Field(
        "all",
        description="all: every view is a row of its own; a number: that view of each sample; one: one view of each "
        "sample, another one in each epoch, so that v epochs give each of v views once",
    )
    drop_last: bool = Field(
        False, description="give every rank the same number of full batches, and leave out the rest of the epoch"
    )


@dataclass(frozen=True, slots=True)
class Reader:
    """One of the `world * workers` readers of an epoch."""

    rank: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        for name, index, count in (("rank", self.rank, self.world), ("worker", self.worker, self.workers)):
            if not 0 <= index < count:
                raise UsageError(f"{name} must be in [0, {count}), got {index}")


@dataclass(frozen=True, slots=True)
class Unit:
    """The rows of one row group that belong to an epoch.

    Attributes:
        part: number of the part in `Parts.parts`.
        group: number of the row group in it.
        rows: int64 [n], positions in the row group; None if all of its rows belong.
        count: n.
    """

    part: int
    group: int
    rows: npt.NDArray[np.int64] | None
    count: int


class Order:
    """The sequence of rows of one epoch.

    Args:
        parts: the data.
        sampling: seed, buffer and views.
        epoch: its number.

    Raises:
        UsageError: `sampling.view` asks for a view that the samples do not have.
    """

    def __init__(self, parts: Parts, sampling: Sampling, epoch: int) -> None:
        self._sampling, self._epoch = sampling, epoch
        self._views = _views(parts, sampling)
        groups = np.array([len(part.group_rows) for part in parts.parts], np.int64)
        self._rows = np.array([rows for part in parts.parts for rows in part.group_rows], np.int64)
        before = np.cumsum(groups) - groups  # units before each part
        self._part = np.repeat(np.arange(len(groups)), groups)
        self._group = np.arange(len(self._rows)) - before[self._part]
        through = np.cumsum(self._rows) - self._rows
        self._first = through - through[before[self._part]] if len(self._rows) else through  # row of the part
        units = self._generator(0).permutation(len(self._rows)) if sampling.shuffle else np.arange(len(self._rows))
        self._units = units
        counts = self._selected_before(units, self._rows[units]) - self._selected_before(units, 0)
        self._stops = np.cumsum(counts)
        self._starts = self._stops - counts
        blocks = self._starts // sampling.buffer_rows
        self._block_units = np.concatenate([np.flatnonzero(np.diff(blocks, prepend=-1)), [len(units)]])
        self._block_starts = np.append(self._starts, self.rows)[self._block_units]

    @property
    def rows(self) -> int:
        """Rows of the epoch."""
        return int(self._stops[-1]) if len(self._stops) else 0

    @cached_property
    def checksum(self) -> int:
        """Differs if this order was drawn otherwise, say by another version of NumPy."""
        return zlib.crc32(np.ascontiguousarray(self._units, np.int64).tobytes())

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The blocks that hold the positions [start, stop), and which rows of each: (block, first, last)."""
        block = int(np.searchsorted(self._block_starts, start, side="right")) - 1
        while start < stop:
            offset, end = int(self._block_starts[block]), int(self._block_starts[block + 1])
            if end > start:
                yield block, start - offset, min(stop, end) - offset
                start = min(stop, end)
            block += 1

    def block(self, number: int) -> list[Unit]:
        """The units of a block; its rows are theirs, one after another."""
        first, last = self._block_units[number], self._block_units[number + 1]
        return [self._unit(int(unit)) for unit in self._units[first:last]]

    def places(self, number: int, spans: Sequence[Range]) -> npt.NDArray[np.int64] | slice:
        """Where in a block's rows those stand that come as its [first, last) of each span in the shuffled order."""
        if not self._sampling.shuffle and len(spans) == 1:
            return slice(*spans[0])
        size = int(self._block_starts[number + 1] - self._block_starts[number])
        rows = self._generator(1, number).permutation(size) if self._sampling.shuffle else np.arange(size)
        return np.concatenate([rows[first:last] for first, last in spans])

    def needed(self, number: int, spans: Sequence[Range]) -> tuple[list[Unit], npt.NDArray[np.int64] | slice]:
        """The units of a block that hold the rows of some spans, and the rows' places among those of these units."""
        units, places = self.block(number), self.places(number, spans)
        counts = np.array([unit.count for unit in units], np.int64)
        stops = np.cumsum(counts)
        if isinstance(places, slice):
            used = (counts > 0) & (stops > places.start) & (stops - counts < places.stop)
            skipped = int(counts[: np.argmax(used)].sum())
            places = slice(places.start - skipped, places.stop - skipped)
        else:
            unit_of = np.searchsorted(stops, places, side="right")
            used = np.bincount(unit_of, minlength=len(units)) > 0
            places = places - np.cumsum(np.where(used, 0, counts))[unit_of]
        return [unit for unit, is_used in zip(units, used, strict=True) if is_used], places

    def _unit(self, number: int) -> Unit:
        part, group, rows = int(self._part[number]), int(self._group[number]), int(self._rows[number])
        if self._views == 1:
            return Unit(part, group, None, rows)
        first = int(self._first[number])
        samples = np.arange(first // self._views, (first + rows - 1) // self._views + 1)
        places = samples * self._views + self._view_of(samples) - first
        places = places[(places >= 0) & (places < rows)]
        return Unit(part, group, places, len(places))

    def _selected_before(self, units: npt.NDArray[Any], rows: npt.NDArray[Any] | int) -> npt.NDArray[np.int64]:
        """How many rows of a unit's part belong to the epoch and stand before the unit's row `rows`."""
        row = self._first[units] + rows
        sample = row // self._views
        found: npt.NDArray[np.int64] = sample + (row % self._views > self._view_of(sample))
        return found

    def _view_of(self, sample: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | int:
        """The view of a part's `sample`-th sample that belongs to this epoch."""
        if self._views == 1:
            return 0
        view = self._sampling.view
        return view if isinstance(view, int) else (sample + self._epoch + self._sampling.seed) % self._views

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self._sampling.seed, self._epoch, *stream])


def share(left: Sequence[Range], reader: Reader, sampling: Sampling) -> list[Range]:
    """What one reader gives of the rows that are left: whole batches, and ranks differ by one batch at most.

    The shares of all readers are `left`, cut in pieces; with `sampling.drop_last` all but the last batches of it.
    """
    rows = sum(stop - start for start, stop in left)
    batches = -(-rows // sampling.batch)
    if sampling.drop_last:
        batches = rows // sampling.batch // reader.world * reader.world
    first, last = _part_of(0, batches, reader.rank, reader.world)
    first, last = _part_of(first, last, reader.worker, reader.workers)
    _, rest = cut(left, first * sampling.batch)
    return cut(rest, (last - first) * sampling.batch)[0]


def cut(left: Sequence[Range], rows: int) -> tuple[list[Range], list[Range]]:
    """The first `rows` rows of what is left (or all there is), and the rest."""
    taken: list[Range] = []
    for number, (start, stop) in enumerate(left):
        if rows < stop - start:
            middle = start + rows
            head = [(start, middle)] if rows else []
            return taken + head, [(middle, stop), *left[number + 1 :]]
        taken.append((start, stop))
        rows -= stop - start
    return taken, []


def _part_of(start: int, stop: int, index: int, count: int) -> Range:
    return start + (stop - start) * index // count, start + (stop - start) * (index + 1) // count


def _views(parts: Parts, sampling: Sampling) -> int:
    """Rows of the parts of which one belongs to the epoch: 1 for all rows."""
    if sampling.view == "all":
        return 1
    views = parts.views
    if views is None:
        raise UsageError("samples have different numbers of views, so one of them cannot be chosen; use view='all'")
    if isinstance(sampling.view, int) and not 0 <= sampling.view < views:
        raise UsageError(f"view must be in [0, {views}), got {sampling.view}")
    return views
