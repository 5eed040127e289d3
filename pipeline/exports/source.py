"""What is exported: the rows of a run as one sequence, in the order of their parts."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.output import Output
from pipeline.storage import Storage
from pipeline.tokens.parts import THREADS, Part, Parts, find_parts, open_part


@dataclass(frozen=True, slots=True)
class Source:
    """A run, as an export sees it. Picklable: the tasks of an export get one each.

    Attributes:
        storage: access to it.
        parts: its parts, sorted by name.
        job, summary: its documents.
        view: the only view of each sample that is exported; None for all.
    """

    storage: Storage
    parts: Parts
    job: Mapping[str, Any]
    summary: Mapping[str, Any]
    view: int | None = None

    @property
    def rows(self) -> int:
        """Rows that are exported."""
        return sum(self.part_rows)

    @property
    def part_rows(self) -> list[int]:
        """Rows that are exported of each part."""
        return [self._rows_of(part) for part in self.parts.parts]

    @property
    def views(self) -> int:
        """Rows of the export that belong to one sample.

        Raises:
            UsageError: samples have different numbers of views.
        """
        if self.view is not None:
            return 1
        views = self.parts.views
        if views is None:
            raise UsageError("samples have different numbers of views, which this format cannot hold; give --view 0")
        return views

    @property
    def bytes_per_row(self) -> float:
        """Of the Parquet files."""
        return sum(part.size for part in self.parts.parts) / max(1, self.parts.rows)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of every row's grid.

        Raises:
            UsageError: the grids vary.
        """
        if not pa.types.is_fixed_size_list(self.parts.schema.field("tokens").type):
            raise UsageError("the grids of this run vary, which this format cannot hold; export it as hf")
        return self.parts.spec.grid_height, self.parts.spec.grid_width

    def need(self, column: str) -> None:
        """See that the rows have a column.

        Raises:
            UsageError: they have not.
        """
        if column not in self.parts.schema.names:
            raise UsageError(f"this format needs the column {column!r}, and the run was made without it")

    def need_label(self) -> None:
        """See that every row has a label, from the statistics in the parts' footers.

        Raises:
            UsageError: there is no such column, or a sample has none; the message names one.
        """
        self.need("label")
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._check_labels, self.parts.parts))

    def _check_labels(self, part: Part) -> None:
        with open_part(self.storage, part) as parquet:
            paths = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
            column = paths.index("label")
            for group in range(len(part.group_rows)):
                statistics = parquet.metadata.row_group(group).column(column).statistics
                if statistics is None or not statistics.has_null_count or statistics.null_count:
                    labels_of(parquet.read_row_group(group, columns=["key", "label"]))

    def read(self, start: int, stop: int, columns: list[str] | None = None, multiple: int = 1) -> Iterator[pa.Table]:
        """The rows [start, stop) of the sequence, a row group at a time.

        Args:
            start, stop: rows.
            columns: all if None.
            multiple: each table but the last has a multiple of so many rows.
        """
        return _in_multiples(self.take(np.arange(start, stop), columns), multiple)

    def take(self, rows: npt.NDArray[np.int64], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Some rows of the sequence, in order, a row group at a time.

        Args:
            rows: their numbers, ascending.
            columns: all if None.
        """
        offset = 0
        for part in self.parts.parts:
            count = self._rows_of(part)
            first, last = np.searchsorted(rows, [offset, offset + count])
            if first < last:
                mine = rows[first:last] - offset
                if self.view is not None:
                    mine = mine * (part.rows // part.samples) + self.view
                yield from _rows_of_part(self.storage, part, mine, columns)
            offset += count

    def _rows_of(self, part: Part) -> int:
        return part.rows if self.view is None else part.samples


def open_source(storage: Storage, output: str, *, view: int | None = None, partial: bool = False) -> Source:
    """The run in OUTPUT, to be exported.

    Args:
        storage: access to it.
        output: folder or URL of the run.
        view: export this view of each sample alone.
        partial: export what is there of a run that has not finished.

    Raises:
        UsageError: there is no finished run, or its samples have no such view.
        FingerprintMismatch: its parts were made in different ways.
    """
    found, run = find_parts(storage, output, partial=partial), Output(storage, output)
    job = run.job()
    if job is None:
        raise UsageError(f"{output}: no run here (job.json is missing)")
    source = Source(storage, found, job, run.summary() or run.state(), view)
    if view is not None and not (found.views and 0 <= view < found.views):
        raise UsageError(f"--view must be a view that every sample has: one of {found.views or 'different numbers'}")
    return source


def tokens_of(table: pa.Table, dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
    """The tokens of rows: [n, h * w]."""
    column = table.column("tokens").combine_chunks()
    tokens: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)
    return tokens.astype(dtype)


def labels_of(table: pa.Table) -> npt.NDArray[np.int64]:
    """The labels of rows: [n].

    Raises:
        UsageError: a row has none.
    """
    column = table.column("label").combine_chunks()
    if column.null_count:
        key = table.column("key")[column.is_null().index(True).as_py()]
        raise UsageError(f"sample {key} has no label, which this format needs for every one")
    labels: npt.NDArray[np.int64] = column.to_numpy(zero_copy_only=True)
    return labels


def _rows_of_part(
    storage: Storage, part: Part, rows: npt.NDArray[np.int64], columns: list[str] | None
) -> Iterator[pa.Table]:
    """The rows of a part with these numbers, which ascend, a row group at a time."""
    start = 0
    with open_part(storage, part, pre_buffer=True, page_checksum_verification=True) as parquet:
        for number, count in enumerate(part.group_rows):
            first, last = np.searchsorted(rows, [start, start + count])
            if first < last:
                table = parquet.read_row_group(number, columns=columns)
                chosen = rows[first:last] - start
                yield table if len(chosen) == count else table.take(pa.array(chosen))
            start += count


def _in_multiples(tables: Iterable[pa.Table], multiple: int) -> Iterator[pa.Table]:
    """The same rows in tables of multiples of so many rows, but for the last one."""
    rest: pa.Table | None = None
    for table in tables:
        joined = table if rest is None else pa.concat_tables([rest, table]).unify_dictionaries()
        whole = joined.num_rows // multiple * multiple
        if whole:
            yield joined.slice(0, whole)
        rest = joined.slice(whole) if whole < joined.num_rows else None
    if rest is not None:
        yield rest
