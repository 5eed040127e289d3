"""Work ahead of the reader, in order, within a budget."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def ordered_map(
    pool: Executor,
    work: Callable[[In], Out],
    items: Iterable[In],
    *,
    weigh: Callable[[In], int],
    budget: int,
) -> Iterator[tuple[In, Out]]:
    """Apply `work` to every item in a pool and yield `(item, result)` in the order of the items.

    Items are taken from the iterable only while the weights of those in flight stay within `budget`, so memory is
    bounded however long the iterable is; one item heavier than the whole budget still passes, alone. Reading the
    iterable happens in the caller's thread, between results.

    Raises:
        Whatever `items` or `work` raise, in order; work not yet begun is then cancelled.
    """
    ahead: deque[tuple[In, int, Future[Out]]] = deque()
    held = 0
    try:
        for item in items:
            weight = weigh(item)
            while ahead and held + weight > budget:
                done, freed, result = ahead.popleft()
                held -= freed
                yield done, result.result()
            ahead.append((item, weight, pool.submit(work, item)))
            held += weight
        while ahead:
            done, _, result = ahead.popleft()
            yield done, result.result()
    finally:
        for _, _, future in ahead:
            future.cancel()
