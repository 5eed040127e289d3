"""Which views are looked at."""

import hashlib

import numpy as np
import pytest

from pipeline.qa.sampling import SampleKind, Sampler
from pipeline.tokens.schema import Row
from tests.qa.parts import row

CODES = 32


def batch(rows: list[Row], seed: int = 0) -> tuple[list[Row], np.ndarray, np.ndarray]:
    """Pixels that name their sample, and tokens of half the codes."""
    images = np.stack([np.full((4, 4, 3), one.sample_index % 256, np.uint8) for one in rows])
    return rows, images, np.random.default_rng(seed).integers(0, CODES // 2, (len(rows), 3, 3))


def sampled(count: int, rows: list[Row], size: int) -> Sampler:
    sampler, (_, images, tokens) = Sampler(count, CODES), batch(rows)
    for start in range(0, len(rows), size):
        sampler.add(rows[start : start + size], images[start : start + size], tokens[start : start + size])
    return sampler


@pytest.mark.parametrize("size", [1, 7, 100])
def test_lot_is_the_smallest_hashes_whatever_the_batches(size: int) -> None:
    rows = [row(index, view=view) for index in range(40) for view in (0, 1)]
    chosen = [view for view in sampled(4, rows, size).chosen() if view.kind is SampleKind.RANDOM]
    lots = sorted(rows, key=lambda one: hashlib.sha256(f"{one.key}\0{one.view}".encode()).digest())
    assert [(view.key, view.sample_index, view.view) for view in chosen] == [
        (one.key, one.sample_index, one.view) for one in lots[:4]
    ]
    assert all((view.pixels == view.sample_index).all() for view in chosen)


@pytest.mark.parametrize("size", [1, 8, 100])
def test_view_with_rare_tokens_is_unusual(size: int) -> None:
    rows = [row(index) for index in range(100)]
    sampler, (_, images, tokens) = Sampler(4, CODES), batch(rows)
    tokens[[3, 61]] = np.arange(CODES - 9, CODES).reshape(3, 3)
    for start in range(0, 100, size):
        sampler.add(rows[start : start + size], images[start : start + size], tokens[start : start + size])
    unusual = [view.sample_index for view in sampler.chosen() if view.kind is SampleKind.UNUSUAL]
    assert sorted(unusual) == [3, 61]


def test_first_of_equals_is_unusual_and_none_is_chosen_twice() -> None:
    rows = [row(index) for index in range(20)]
    sampler = Sampler(4, CODES)
    sampler.add(rows, batch(rows)[1], np.zeros((20, 3, 3), np.uint16))
    drawn = [view.sample_index for view in sampler.chosen() if view.kind is SampleKind.RANDOM]
    unusual = [view.sample_index for view in sampler.chosen() if view.kind is SampleKind.UNUSUAL]
    assert len(drawn) == 4
    assert unusual == [index for index in range(2) if index not in drawn]


@pytest.mark.parametrize(("rows", "views"), [(0, 0), (1, 1), (3, 3), (6, 6), (50, 6)])
def test_short_shards(rows: int, views: int) -> None:
    chosen = sampled(4, [row(index) for index in range(rows)], 5).chosen() if rows else Sampler(4, CODES).chosen()
    assert 0 <= len(chosen) <= views
    assert len({view.sample_index for view in chosen}) == len(chosen)
    assert len(chosen) >= min(rows, 4)


def test_pixels_are_kept_apart_from_the_batch() -> None:
    sampler, (rows, images, tokens) = Sampler(4, CODES), batch([row(index) for index in range(6)])
    sampler.add(rows, images, tokens)
    images[:] = 255
    assert all((view.pixels == view.sample_index).all() for view in sampler.chosen())
