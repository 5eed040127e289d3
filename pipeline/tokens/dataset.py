"""The rows of a run as batches for training: shuffled, divided among ranks and workers, resumable at any batch.

    data = TokenDataset("s3://bucket/tokens", Sampling(batch=256), columns=["label"])
    for epoch in range(epochs):
        data.set_epoch(epoch)
        for batch in StatefulDataLoader(data, batch_size=None, num_workers=4):
            batch["tokens"]  # int64 [256, h * w]

Elastic resume follows the idea of MosaicML Streaming (an order that does not depend on the world's size) without its
condition that sizes divide one another: a state tells which ranges of the epoch's sequence its reader has yet to give,
`merge_states` joins those of all readers, and any number of readers divides them anew.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.errors import UsageError
from pipeline.storage import Storage
from pipeline.tokens.batching import GRID, by_grid, in_order
from pipeline.tokens.columns import Places, Rows, join_rows, read_unit
from pipeline.tokens.order import Order, Range, Reader, Sampling, share
from pipeline.tokens.parts import Parts, find_parts
from pipeline.tokens.ranks import rank_and_world
from pipeline.tokens.states import check_state, make_state, progress_of

Batch = dict[str, Any]
Transform = Callable[[Batch], Batch]

READ_THREADS: Final = 4  # row groups read at once by one reader: hides the latency of an object store
BLOCKS_AHEAD: Final = 1  # beside the one being given: bounds a reader's memory
UNSET: Final = -1  # no epoch was asked for; no iteration has begun
HERE: Final = -2  # an iteration of this process, not of a DataLoader's workers
DTYPES: Final = (torch.int64, torch.int32)


class TokenDataset(IterableDataset[Batch]):
    """Batches of tokens, straight from the store of a run. Give it to a DataLoader with `batch_size=None`.

    A batch is a dict: `tokens` [B, T] of `dtype`; columns of numbers as tensors [B] or [B, n] (a missing integer is
    -1, a missing float NaN); `flip` as bool [B], other truth values, which may be missing, as int8 [B] of 1, 0 and -1;
    all else as lists. B is `sampling.batch`, less for the last batch of an epoch; T is h * w.

    Where the grids of a run vary, all rows of a batch have one grid, which `grid_height` and `grid_width` [B] tell. A
    reader gives a batch as soon as it has `sampling.batch` rows of a grid, and at its end what is left of each grid. So
    up to batch - 1 rows of each grid wait in memory, and only when all are read it is known how many batches there are.

    The sequence of batches depends on the parts, the sampling, the epoch, and how many ranks and workers there are.
    With several workers only torchdata's `StatefulDataLoader` knows their states; torch's own DataLoader does not.

    Args:
        data: folder or URL of a finished run, or parts that `find_parts` listed.
        sampling: batch size, order, views.
        columns: what to read beside the tokens, by name; `caption` and `label`, as far as they are there, if None.
        dtype: of the tokens, int64 or int32.
        transforms: functions from batch to batch, applied in order; see `pipeline.tokens.transforms`.
        rank, world: this process among all; if not given, torch.distributed's, or those of torchrun's environment.
        storage: access to the store.

    Raises:
        UsageError: the run is not finished, a column does not exist, rank and world are wrong, or
            `drop_last` is asked for where grids vary.
    """

    def __init__(
        self,
        data: str | Parts,
        sampling: Sampling | None = None,
        *,
        columns: Sequence[str] | None = None,
        dtype: torch.dtype = torch.int64,
        transforms: Iterable[Transform] = (),
        rank: int | None = None,
        world: int | None = None,
        storage: Storage | None = None,
    ) -> None:
        super().__init__()
        self._storage = storage or Storage()
        self.parts = data if isinstance(data, Parts) else find_parts(self._storage, data)
        self.sampling = sampling or Sampling()
        if self.sampling.drop_last and self.parts.spec.varies:
            raise UsageError(
                "drop_last must be false where grids vary, got true: ranks have different numbers of full batches, "
                "known only when all rows are read; let the training stop at the rank that ends first"
            )
        self._names = _column_names(self.parts, columns)
        if dtype not in DTYPES or self.parts.spec.codebook_size > torch.iinfo(dtype).max:
            raise UsageError(f"dtype must be torch.int64 or torch.int32 and hold the codes, got {dtype}")
        self._dtype, self._transforms = dtype, tuple(transforms)
        self._reader = Reader(*rank_and_world(rank, world))
        self._wanted_epoch = _shared()  # for the processes of persistent workers
        self._resume: dict[str, Any] | None = None  # a state that the next iteration goes on from
        self._resumed_by = _shared()  # the iteration that did: the workers of a later one inherit the state
        self._progress: tuple[int, list[Range]] | None = None  # epoch, and what this reader has yet to give of it
        self._order: tuple[int, Order] | None = None

    def __len__(self) -> int:
        """Batches that this rank gives in an epoch.

        Raises:
            TypeError: grids vary, so that only reading tells. (What Python and torch expect of who has no length.)
        """
        if self.parts.spec.varies:
            raise TypeError("a TokenDataset of grids of several shapes has no length before it is read")
        order = self._order_of(self._epoch())
        mine = share(_whole(order), self._reader, self.sampling)
        return math.ceil(sum(stop - start for start, stop in mine) / self.sampling.batch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; if never called, that of the state loaded, else 0."""
        if epoch < 0:
            raise UsageError(f"epoch must be 0 or more, got {epoch}")
        self._wanted_epoch[0] = epoch

    def state_dict(self) -> dict[str, Any]:
        """What the reader that asks has yet to give, after the last batch that it gave; plain numbers and texts."""
        epoch, left = self._progress or self._begin()
        return make_state(self.parts, self._order_of(epoch), epoch, self.sampling, self._me(), left)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on from a state: of the same reader, or of `merge_states` for any reader.

        Raises:
            UsageError: the state is of other parts, another order or another reader.
        """
        check_state(state, self.parts, self.sampling, self._order_of)
        progress_of(state, self._me())
        self._resume, self._resumed_by, self._progress = dict(state), _shared(), None

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this reader: what is left after the state loaded, else a whole epoch.

        Raises:
            UsageError: `set_epoch` asks for another epoch than the state loaded, which is not over.
        """
        self._progress = self._begin()
        self._resume = None
        if int(self._resumed_by[0]) == UNSET:
            self._resumed_by[0] = _iteration()
        return self._batches(*self._progress)

    # --- who am I, and where ---

    def _me(self) -> Reader:
        info = get_worker_info()
        mine = self._reader
        return Reader(mine.rank, mine.world, info.id, info.num_workers) if info else mine

    def _epoch(self) -> int:
        return max(0, int(self._wanted_epoch[0]))

    def _begin(self) -> tuple[int, list[Range]]:
        """Epoch and ranges of the next iteration."""
        wanted = int(self._wanted_epoch[0])
        if self._resume is not None and int(self._resumed_by[0]) in (UNSET, _iteration()):
            epoch, left, whole = progress_of(self._resume, self._me())
            if wanted in (UNSET, epoch):
                return epoch, share(left, self._me(), self.sampling) if whole else left
            if left:
                raise UsageError(
                    f"the state loaded is in the middle of epoch {epoch}, and set_epoch asks for {wanted}; call "
                    f"set_epoch({epoch}), or do not load it"
                )
        return self._epoch(), share(_whole(self._order_of(self._epoch())), self._me(), self.sampling)

    def _order_of(self, epoch: int) -> Order:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, Order(self.parts, self.sampling, epoch)
        return self._order[1]

    # --- rows to batches ---

    def _batches(self, epoch: int, left: list[Range]) -> Iterator[Batch]:
        order, cut_batches = self._order_of(epoch), by_grid if self.parts.spec.varies else in_order
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="rows") as pool:
            spans = (span for start, stop in left for span in order.spans(start, stop))
            try:
                for rows, after in cut_batches(self._ahead(pool, order, spans), left, self.sampling.batch):
                    self._progress = epoch, after
                    yield self._finish(rows)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _ahead(self, pool: ThreadPoolExecutor, order: Order, spans: Iterator[tuple[int, int, int]]) -> Iterator[Rows]:
        """The rows of the spans in the epoch's order, block by block, while the next block is read."""
        waiting: deque[tuple[list[Future[Rows]], Places]] = deque()
        for block, its_spans in groupby(spans, key=itemgetter(0)):
            units, places = order.needed(block, [(first, last) for _, first, last in its_spans])
            reading = [pool.submit(read_unit, self._storage, self.parts, unit, self._names) for unit in units]
            waiting.append((reading, places))
            if len(waiting) > BLOCKS_AHEAD:
                yield _arrange(*waiting.popleft())
        while waiting:
            yield _arrange(*waiting.popleft())

    def _finish(self, rows: Rows) -> Batch:
        codes = rows.columns["tokens"]
        if isinstance(codes, pa.ListArray):
            codes = codes.flatten().to_numpy(zero_copy_only=True).reshape(len(rows), -1)
        tokens = torch.from_numpy(codes.astype("int64" if self._dtype == torch.int64 else "int32"))
        batch: Batch = {"tokens": tokens} | {
            name: column.to_pylist() if isinstance(column, pa.Array) else torch.from_numpy(column.copy())
            for name, column in rows.columns.items()
            if name != "tokens"
        }
        for transform in self._transforms:
            batch = transform(batch)
        return batch


def _arrange(reading: list[Future[Rows]], places: Places) -> Rows:
    """The rows at some places of what is being read, as soon as all of it is."""
    return join_rows([unit.result() for unit in reading]).take(places)


def _shared() -> torch.Tensor:
    """A number [1] that this process and those it forks all see and set; UNSET at first."""
    number = torch.full((1,), UNSET, dtype=torch.int64)
    number.share_memory_()  # type: ignore[no-untyped-call]
    return number


def _iteration() -> int:
    """What all workers of one iteration of a DataLoader have in common: the seed that it drew for them."""
    info = get_worker_info()
    return info.seed - info.id if info else HERE


def _whole(order: Order) -> list[Range]:
    return [(0, order.rows)] if order.rows else []


def _column_names(parts: Parts, columns: Sequence[str] | None) -> list[str]:
    there = list(parts.schema.names)
    names = [name for name in ("caption", "label") if name in there] if columns is None else list(columns)
    if unknown := sorted(set(names) - set(there)):
        raise UsageError(f"columns must be among {', '.join(there)}; got {', '.join(unknown)}")
    always = ["tokens", *(GRID if parts.spec.varies else ())]
    return list(dict.fromkeys([*always, *names]))
