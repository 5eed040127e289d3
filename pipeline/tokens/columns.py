"""Columns of Parquet as what a training loop takes: arrays of numbers, lists of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.storage import Storage
from pipeline.tokens.order import Unit
from pipeline.tokens.parts import Parts, open_part

Places = npt.NDArray[np.int64] | slice
NO_NUMBER = -1  # stands for a null where integers are asked for, as in `label`, or truth values


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows, by column: numpy [n] or [n, width] for numbers, `pyarrow.Array` for texts.

    An array of numbers may be a view of Arrow's memory: read-only.
    """

    columns: dict[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def take(self, places: Places) -> "Rows":
        """The rows at `places`: copies, but for a slice, which is a view."""
        return Rows({name: _take(column, places) for name, column in self.columns.items()})


def read_unit(storage: Storage, parts: Parts, unit: Unit, names: Sequence[str]) -> Rows:
    """The rows of a unit.

    Raises:
        UsageError: the part is no longer the one that was listed, or its views do not follow one another.
    """
    part = parts.parts[unit.part]
    wanted = [*names] if unit.rows is None else [*{*names, "view"}]
    with open_part(storage, part, pre_buffer=True) as parquet:
        table = parquet.read_row_group(unit.group, columns=wanted, use_threads=False)
    rows = Rows({name: _plain(table.column(name), table.schema.field(name).nullable) for name in names})
    if unit.rows is None:
        return rows
    views = np.asarray(table.column("view"))
    start = sum(part.group_rows[: unit.group]) + np.arange(len(views))
    if not np.array_equal(views, start % (part.rows // part.samples)):
        raise UsageError(f"{part.url}: the views of a sample do not follow one another; use view='all'")
    return rows.take(unit.rows)


def join_rows(some: Sequence[Rows]) -> Rows:
    """Rows one after another."""
    if len(some) == 1:
        return some[0]
    return Rows({name: _join([rows.columns[name] for rows in some]) for name in some[0].columns})


def _plain(column: Any, nullable: bool) -> Any:
    """One column of one row group, without a copy where Arrow's memory is what is wanted.

    What it becomes depends on the column's type, never on its values: other row groups have others, and join it.
    """
    array = column.combine_chunks()
    kind = array.type
    if pa.types.is_boolean(kind) and nullable:
        array, kind = array.cast(pa.int8()), pa.int8()
    if pa.types.is_dictionary(kind):
        array, kind = array.cast(kind.value_type), kind.value_type
    if pa.types.is_fixed_size_list(kind):
        return array.flatten().to_numpy(zero_copy_only=True).reshape(-1, kind.list_size)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        if array.null_count:
            array = pc.fill_null(array, NO_NUMBER if pa.types.is_integer(kind) else float("nan"))
        return array.to_numpy(zero_copy_only=True)
    if pa.types.is_boolean(kind):
        return array.to_numpy(zero_copy_only=False)
    return array


def _take(column: Any, places: Places) -> Any:
    if isinstance(column, np.ndarray) or isinstance(places, slice):
        return column[places]
    return column.take(pa.array(places))


def _join(columns: Sequence[Any]) -> Any:
    return np.concatenate(columns) if isinstance(columns[0], np.ndarray) else pa.concat_arrays(columns)
