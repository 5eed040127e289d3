"""The rows of a reader, as they come, cut into batches; with each batch what is yet to give after it.

Where grids vary, a row waits until there are enough of its grid. Those that wait are rows of the epoch's sequence like
those not read yet, so what is left stays a list of ranges, now with gaps. Whoever reads it again has the same rows
waiting before any new one comes, and goes on with the same batches: nothing else needs to be remembered.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.tokens.columns import Rows, join_rows
from pipeline.tokens.order import Range, cut

Places = npt.NDArray[np.int64]
GRID = ("grid_height", "grid_width")  # the columns that tell a row's grid


def in_order(chunks: Iterator[Rows], left: list[Range], batch: int) -> Iterator[tuple[Rows, list[Range]]]:
    """Batches of rows that all have one grid, in the order of the sequence.

    Args:
        chunks: the rows of `left`, in order.
        left: what this reader gives.
        batch: rows of a batch; the last one has what is left.
    """
    some: list[Rows] = []  # less than a batch
    for chunk in chunks:
        start, size = 0, len(chunk)
        while start < size:
            stop = min(size, start + batch - sum(map(len, some)))
            some.append(chunk.take(slice(start, stop)))
            start = stop
            if sum(map(len, some)) == batch:
                left = cut(left, batch)[1]
                yield join_rows(some), left
                some = []
    if some:
        yield join_rows(some), []


def by_grid(chunks: Iterator[Rows], left: list[Range], batch: int) -> Iterator[tuple[Rows, list[Range]]]:
    """Batches of rows of one grid each, in the order in which they become full; then what waits of each grid.

    Args:
        chunks: the rows of `left`, in order, with the columns `GRID`.
        left: what this reader gives.
        batch: rows of a batch; the last one of each grid has what is left of it.
    """
    waiting, places = list[Rows](), np.empty(0, np.int64)  # places: in the sequence, ascending
    for chunk in chunks:
        rows = join_rows([*waiting, chunk])
        now, left = cut(left, len(chunk))
        places = np.concatenate([places, *(np.arange(*some) for some in now)])
        given = np.zeros(len(places), bool)
        same = _of_same_grid(rows)
        full = [some[at : at + batch] for some in same for at in range(0, len(some) - batch + 1, batch)]
        for members in sorted(full, key=lambda some: int(some[-1])):
            given[members] = True
            yield rows.take(members), [*_ranges(places[~given]), *left]
        waiting, places = [rows.take(np.flatnonzero(~given))], places[~given]
    for rows in waiting:
        given = np.zeros(len(places), bool)
        for members in sorted(_of_same_grid(rows), key=lambda some: int(some[0])):
            given[members] = True
            yield rows.take(members), _ranges(places[~given])


def _of_same_grid(rows: Rows) -> list[Places]:
    """The numbers of the rows of each grid, ascending."""
    height, width = (rows.columns[name].astype(np.int64) for name in GRID)
    grid: npt.NDArray[Any] = height << 32 | width
    order = np.argsort(grid, kind="stable")
    starts = np.flatnonzero(np.diff(grid[order], prepend=-1))
    return np.split(order, starts[1:]) if len(order) else []


def _ranges(places: Places) -> list[Range]:
    """Ascending places as ranges."""
    firsts = np.flatnonzero(np.diff(places, prepend=-2) != 1)
    starts, lasts = places[firsts], places[np.append(firsts[1:], len(places)) - 1] if len(places) else places
    return list(zip(starts.tolist(), (lasts + 1).tolist(), strict=True))
