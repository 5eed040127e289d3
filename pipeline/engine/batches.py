"""Views to batches for the device, and their tokens back into the order of the tar.

Images of one shape fill batch after batch. Images of several shapes are taken window by window: those of one shape
within a window share batches, and rows wait for the ones before them, for a window at most.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.engine.engine import Encoding, Engine, Images
from pipeline.images import View
from pipeline.tokens.schema import Grids, Row

BATCHES_IN_FLIGHT = 2  # one on the device, one waiting for it
WINDOW_VIEWS = 64  # at least; and WINDOW_BATCHES, so that a batch fills although there are several shapes
WINDOW_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Views of one shape.

    Attributes:
        rows: n of them, ascending.
        images: uint8 [n, H, W, 3].
        places: of the rows among all views of the shard.
    """

    rows: list[Row]
    images: Images
    places: range | list[int]


def encoded(views: Iterator[tuple[Row, View]], engine: Engine) -> Iterator[tuple[Batch, "Future[Encoding]"]]:
    """Batches with their encodings, in order; the device always has the next batch at hand."""
    ahead: deque[tuple[Batch, Future[Encoding]]] = deque()
    for batch in _by_shape(views, engine.batch_size) if engine.multiple else _of_squares(views, engine):
        ahead.append((batch, engine.submit(batch.images)))
        if len(ahead) > BATCHES_IN_FLIGHT:
            yield ahead.popleft()
    yield from ahead


def _of_squares(views: Iterator[tuple[Row, View]], engine: Engine) -> Iterator[Batch]:
    shape = (engine.batch_size, engine.image_size, engine.image_size, 3)
    for start in count(0, engine.batch_size):
        rows: list[Row] = []
        images = np.empty(shape, np.uint8)
        for row, view in islice(views, engine.batch_size):
            images[len(rows)] = view.pixels
            rows.append(row)
        if not rows:
            return
        yield Batch(rows, images[: len(rows)], range(start, start + len(rows)))


def _by_shape(views: Iterator[tuple[Row, View]], batch_size: int) -> Iterator[Batch]:
    places = count()
    while window := list(islice(views, max(WINDOW_VIEWS, WINDOW_BATCHES * batch_size))):
        groups: dict[tuple[int, ...], list[tuple[Row, View, int]]] = defaultdict(list)
        for row, view in window:
            groups[view.pixels.shape].append((row, view, next(places)))
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                some = group[start : start + batch_size]
                images = np.stack([view.pixels for _, view, _ in some])
                yield Batch([row for row, _, _ in some], images, [place for _, _, place in some])


@dataclass(slots=True)
class InOrder:
    """Rows and their tokens, given out in the order of their places."""

    _next: int = 0
    _waiting: dict[int, tuple[Row, npt.NDArray[Any]]] = field(default_factory=dict)

    def ready(self, batch: Batch, tokens: npt.NDArray[Any]) -> tuple[list[Row], Grids]:
        """Take a batch with its tokens [n, h, w]; returns the rows whose turn has come, with theirs."""
        if isinstance(batch.places, range):  # of one shape: always in order
            return batch.rows, tokens
        self._waiting.update(zip(batch.places, zip(batch.rows, tokens, strict=True), strict=True))
        rows, grids = [], []
        while self._next in self._waiting:
            row, grid = self._waiting.pop(self._next)
            rows.append(row)
            grids.append(grid)
            self._next += 1
        return rows, grids
