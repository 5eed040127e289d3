"""The statistics against scipy, and against counting by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from scipy.spatial import distance

from pipeline.qa.statistics import ShardStatistics, entropy, jensen_shannon, perplexity, psnr, usage

RNG = np.random.default_rng(0)
HISTOGRAMS = [RNG.integers(0, 50, 100), RNG.poisson(0.3, 1024), np.eye(7, dtype=int)[3], np.full(16, 5), [1, 2, 0, 4]]


@pytest.mark.parametrize("counts", HISTOGRAMS)
def test_entropy_is_scipys(counts: np.ndarray) -> None:
    assert entropy(counts) == pytest.approx(scipy.stats.entropy(counts, base=2), abs=1e-12)
    assert perplexity(counts) == pytest.approx(2 ** scipy.stats.entropy(counts, base=2))


@pytest.mark.parametrize("codes", [2, 100, 4096])
def test_divergence_is_scipys(codes: int) -> None:
    for _ in range(10):
        a, b = RNG.poisson(RNG.uniform(0.2, 9), (2, codes)) + RNG.integers(0, 2, (2, codes))
        assert jensen_shannon(a, b) == pytest.approx(distance.jensenshannon(a, b, base=2) ** 2, abs=1e-12)


def test_divergence_at_its_ends() -> None:
    assert jensen_shannon([3, 5, 0], [6, 10, 0]) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon([1, 0], [0, 9]) == 1
    with pytest.raises(ValueError, match="empty"):
        jensen_shannon([0, 0], [1, 2])


def test_entropy_and_usage_of_nothing() -> None:
    assert (entropy([]), entropy([0, 0]), usage([]), perplexity([0])) == (0, 0, 0, 1)
    assert usage([0, 3, 1, 0]) == 0.5


def test_psnr_by_hand() -> None:
    image = RNG.integers(0, 200, (9, 7, 3), np.uint8)
    assert psnr(image, image + 10) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(image, image) == 100


def counted(tokens: np.ndarray, codes: int, batch: int = 7, **columns: np.ndarray) -> ShardStatistics:
    statistics = ShardStatistics(codes)
    index = np.arange(len(tokens))
    given = {"sample_index": index, "view": 0 * index, "height": 0 * index + 300, "width": 0 * index + 400, **columns}
    for start in range(0, len(tokens), batch):
        chunk = slice(start, start + batch)
        statistics.add(tokens[chunk], **{name: column[chunk] for name, column in given.items()})
    return statistics


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_tokens_are_counted_as_by_hand(dtype: type) -> None:
    tokens = RNG.integers(0, 30, (50, 4, 4)).astype(dtype)
    tokens[[5, 20]] = 3
    tokens[5, 0], tokens[20, :, 3] = 7, 8  # the edges of a blank image have other codes
    tokens[[9, 31, 49]] = tokens[2]
    found, by_hand = counted(tokens, 32), Counter(tokens.reshape(-1).tolist())
    assert found.histogram.tolist() == [by_hand[code] for code in range(32)]
    assert found.halves[1].tolist() == [int((tokens[1::2] == code).sum()) for code in range(32)]
    assert (found.rows, found.constant_grids, found.duplicate_grids, found.out_of_range) == (50, 2, 3, 0)
    assert found.split_divergence == pytest.approx(
        distance.jensenshannon(found.halves[0], found.halves[1], base=2) ** 2
    )


def test_tokens_outside_the_codebook_are_counted_apart() -> None:
    found = counted(np.array([[[0, 31]], [[32, 65535]], [[5, 40]]], np.uint16), 32)
    assert (found.out_of_range, found.histogram.sum()) == (3, 3)


def test_grids_that_differ_in_one_place_are_no_duplicates() -> None:
    tokens = np.zeros((4096, 8, 8), np.uint16)
    tokens.reshape(4096, 64)[np.arange(1, 4096), RNG.integers(0, 64, 4095)] = np.arange(1, 4096)
    assert counted(tokens, 4096, batch=1000).duplicate_grids == 0


def test_sizes_and_aspects_count_samples_not_views() -> None:
    height, width = np.array([256, 256, 361, 363, 100, 1]), np.array([256, 256, 722, 400, 401, 3])
    found = counted(np.zeros((6, 2, 2), int), 8, height=height, width=width, view=np.array([0, 1, 0, 0, 0, 0]))
    assert found.sizes == {"256": 2, "362": 1, "90": 1, "1": 1}
    assert found.aspects == {"0.00": 2, "1.00": 1, "2.00": 1, "1.50": 1}


def test_shard_without_rows() -> None:
    found = ShardStatistics(16)
    assert (found.rows, found.duplicate_grids, found.split_divergence) == (0, 0, None)
    assert found.histogram.tolist() == [0] * 16
