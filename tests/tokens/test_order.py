"""The order of an epoch and who gives what of it: pure arithmetic, over the whole grid of sizes."""

import random
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest

from pipeline.errors import UsageError
from pipeline.tokens.order import Order, Reader, Sampling, Unit, cut, share
from pipeline.tokens.parts import Part, Parts
from pipeline.tokens.schema import TokenSpec

GRID = list(product((1, 3, 8, 100), (1, 2, 3, 5, 8), (1, 2, 3), (0, 1, 61, 96)))  # batch, world, workers, rows


def parts_of(*groups: tuple[int, ...], views: int = 1) -> Parts:
    """Parts without files: row groups of so many rows each."""
    parts = [Part(f"p{i}.parquet", rows, sum(rows) // views, "f") for i, rows in enumerate(groups)]
    return Parts(tuple(parts), TokenSpec(16, 2, 2), None)


def readers(world: int, workers: int) -> list[Reader]:
    return [Reader(r, world, w, workers) for r in range(world) for w in range(workers)]


def rows_at(places: np.ndarray | slice, units: list[Unit]) -> list[tuple[int, int, int]]:
    """(part, group, row of the group) of the rows at some places of some units."""
    there = [
        (unit.part, unit.group, int(row))
        for unit in units
        for row in (range(unit.count) if unit.rows is None else unit.rows)
    ]
    return there[places] if isinstance(places, slice) else [there[place] for place in places]


def sequence(order: Order) -> list[tuple[int, int, int]]:
    """(part, group, row of the group) of every row of an epoch, in order."""
    spans = order.spans(0, order.rows)
    return [row for block, *span in spans for row in rows_at(order.places(block, [span]), order.block(block))]


def size(left: list[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in left)


@pytest.mark.parametrize(("batch", "world", "workers", "rows"), GRID)
def test_shares_are_the_epoch_cut_in_pieces(batch: int, world: int, workers: int, rows: int) -> None:
    sampling, everyone = Sampling(batch=batch), readers(world, workers)
    shares = [share([(0, rows)] if rows else [], reader, sampling) for reader in everyone]
    assert [p for left in shares for start, stop in left for p in range(start, stop)] == list(range(rows))
    batches = Counter(dict.fromkeys(range(world), 0))
    for reader, left in zip(everyone, shares, strict=True):
        batches[reader.rank] += -(-size(left) // batch)
    assert max(batches.values()) - min(batches.values()) <= 1
    assert sum(batches.values()) == -(-rows // batch), "one short batch at most, whatever the number of readers"


@pytest.mark.parametrize(("batch", "world", "workers", "rows"), GRID)
def test_equal_numbers_of_full_batches(batch: int, world: int, workers: int, rows: int) -> None:
    sampling = Sampling(batch=batch, drop_last=True)
    shares = {reader: share([(0, rows)] if rows else [], reader, sampling) for reader in readers(world, workers)}
    assert all(size(left) % batch == 0 for left in shares.values())
    ranks = [sum(size(left) for reader, left in shares.items() if reader.rank == rank) for rank in range(world)]
    assert set(ranks) == {rows // batch // world * batch}
    places = sorted(p for left in shares.values() for start, stop in left for p in range(start, stop))
    assert places == list(range(sum(ranks)))


def test_any_chain_of_world_sizes_gives_each_row_once() -> None:
    dice = random.Random(0)
    for _ in range(300):
        rows, sampling = dice.randrange(400), Sampling(batch=dice.choice((1, 4, 7)))
        left, given = [(0, rows)] if rows else [], []
        for _ in range(5):
            rests = []
            for reader in readers(dice.randrange(1, 6), dice.randrange(1, 4)):
                now, rest = cut(share(left, reader, sampling), dice.randrange(4) * sampling.batch)  # at its own pace
                given += [p for start, stop in now for p in range(start, stop)]
                rests += rest
            left = sorted(rests)
        given += [p for start, stop in left for p in range(start, stop)]
        assert sorted(given) == list(range(rows))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("buffer_rows", [1, 5, 1000])
def test_epoch_gives_each_row_once(shuffle: bool, buffer_rows: int) -> None:
    parts = parts_of((4, 4, 2), (), (3,), (4, 4, 4, 1), (1,))
    order = Order(parts, Sampling(shuffle=shuffle, buffer_rows=buffer_rows), 0)
    stored = [(p, g, r) for p, part in enumerate(parts.parts) for g, n in enumerate(part.group_rows) for r in range(n)]
    rows = sequence(order)
    assert sorted(rows) == stored
    assert (rows == stored) == (not shuffle)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    parts = parts_of(*[(5, 5, 5)] * 8)
    drawn = {key: sequence(Order(parts, Sampling(seed=key[0]), key[1])) for key in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert len({tuple(rows) for rows in drawn.values()}) == 4
    assert sequence(Order(parts, Sampling(batch=7), 0)) == drawn[0, 0]


def test_buffer_bounds_what_a_block_holds() -> None:
    order = Order(parts_of(*[(10, 10, 3)] * 50), Sampling(buffer_rows=40), 0)
    blocks = {block: last - first for block, first, last in order.spans(0, order.rows)}
    assert max(blocks.values()) < 40 + 10
    assert sum(blocks.values()) == order.rows == 1150


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("view", ["all", "one"])
def test_units_that_spans_need(shuffle: bool, view: str) -> None:
    parts = parts_of((4, 1, 3), (), (2, 2, 2), (1, 1), views=2)
    order, start = Order(parts, Sampling(shuffle=shuffle, buffer_rows=7, view=view), 0), 0
    whole = sequence(order)
    for block, _, size in order.spans(0, order.rows):
        for first, last in combinations(range(size + 1), 2):
            for spans in ([(first, last)], [(0, first + 1), (last, size)]):
                expected = [row for a, b in spans for row in whole[start + a : start + b]]
                units, places = order.needed(block, spans)
                assert rows_at(places, units) == expected
                assert sorted({row[:2] for row in expected}) == sorted((unit.part, unit.group) for unit in units)
        start += size
    assert start == len(whole)


def test_rows_of_a_block_mix_shards() -> None:
    order = Order(parts_of(*[(10, 10)] * 30), Sampling(buffer_rows=100), 0)
    assert len({part for part, _, _ in sequence(order)[:100]}) > 5


@pytest.mark.parametrize("views", [2, 3, 10])
@pytest.mark.parametrize("group", [4, 7])
def test_one_view_of_each_sample(views: int, group: int) -> None:
    rows = 6 * views
    groups = (group,) * (rows // group) + ((rows % group,) if rows % group else ())
    parts, seen = parts_of(groups, groups, views=views), Counter()
    for epoch in range(views):
        order = Order(parts, Sampling(view="one", buffer_rows=5), epoch)
        absolute = [(part, unit * group + row) for part, unit, row in sequence(order)]
        assert sorted((p, row // views) for p, row in absolute) == [(p, s) for p in range(2) for s in range(6)]
        seen.update(absolute)
    assert set(seen.values()) == {1}
    assert len(seen) == 2 * rows, "as many epochs as views give each view once"
    third = sequence(Order(parts, Sampling(view=1), 0))
    assert len(third) == 12
    assert {(unit * group + row) % views for _, unit, row in third} == {1}


@pytest.mark.parametrize("view", ["one", 0])
def test_views_that_differ_between_samples(view: str | int) -> None:
    parts = Parts((Part("a", (5,), 2, "f"), Part("b", (4,), 2, "f")), TokenSpec(16, 2, 2), None)
    with pytest.raises(UsageError, match="different numbers of views"):
        Order(parts, Sampling(view=view), 0)


def test_view_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"view must be in \[0, 2\), got 2"):
        Order(parts_of((4,), views=2), Sampling(view=2), 0)


@pytest.mark.parametrize("reader", [(4, 4, 0, 1), (-1, 4, 0, 1), (0, 1, 2, 2)])
def test_reader_that_cannot_be(reader: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError, match="must be in"):
        Reader(*reader)
