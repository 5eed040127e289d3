"""Outliers among shards of any size, made by lot: no healthy shard is one, and those that drift are."""

import numpy as np
import pytest

from pipeline.qa.config import QaConfig
from pipeline.qa.divergence import FIRST_SHARDS, MIN_SAMPLES, Divergence
from pipeline.qa.evidence import QaReport
from pipeline.qa.statistics import ShardStatistics
from pipeline.tokens.schema import Counts
from tests.qa.parts import report

CODES, SIDE = 256, 12
LIMIT = QaConfig().max_divergence
assert LIMIT is not None


class Corpus:
    """Images as mixtures of a few textures: their tokens have much in common, as those of photographs do."""

    def __init__(self, seed: int, textures: int = 40) -> None:
        self.rng = np.random.default_rng(seed)
        self.textures = self.rng.dirichlet(np.full(CODES, 0.05), textures)

    def shard(self, images: int, name: str = "healthy", *, drift: float = 0.0) -> QaReport:
        """A shard; by `drift`, in [0, 1], its images prefer the first quarter of the textures."""
        liked = 1 + drift * 30 * (np.arange(len(self.textures)) < len(self.textures) / 4)
        mixtures = self.rng.dirichlet(0.05 * liked, images) @ self.textures
        counts = self.rng.multinomial(SIDE * SIDE, mixtures / mixtures.sum(axis=1, keepdims=True))
        tokens = np.stack([np.repeat(np.arange(CODES), count) for count in counts]).reshape(-1, SIDE, SIDE)
        statistics, index = ShardStatistics(CODES), np.arange(images)
        statistics.add(tokens, sample_index=index, view=0 * index, height=index + 1, width=index + 1)
        return report(
            name,
            counts=Counts(images, images, images, 0),
            histogram=statistics.histogram,
            split_divergence=statistics.split_divergence,
        )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "sizes", [[8], [32], [200], [8, 16, 32, 64, 128, 256], [300] * 20 + [5], [300] * 20 + [32]], ids=str
)
def test_healthy_shards_of_any_size_are_no_outliers(sizes: list[int], seed: int) -> None:
    corpus, divergence = Corpus(seed), Divergence(LIMIT)
    found = [divergence.judge(corpus.shard(sizes[number % len(sizes)])) for number in range(42)]
    assert not any(found)
    assert divergence.unresolved == sum(sizes[number % len(sizes)] < MIN_SAMPLES for number in range(42))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("images", [64, 300])
@pytest.mark.parametrize("place", [0, FIRST_SHARDS - 1, 15])
def test_shard_that_drifts_is_an_outlier_wherever_it_comes(place: int, images: int, seed: int) -> None:
    corpus, divergence, outliers = Corpus(seed), Divergence(LIMIT), []
    for number in range(24):
        shard = corpus.shard(images, "bad", drift=1.0) if number == place else corpus.shard(images)
        outliers += divergence.judge(shard)
    assert [outlier.url for outlier in outliers] == ["s3://corpus/bad.tar"]
    assert outliers[0].excess > outliers[0].limit >= LIMIT


def test_corpus_of_unlike_shards_has_no_outliers() -> None:
    corpora, divergence = [Corpus(seed) for seed in range(20)], Divergence(LIMIT)
    assert not any(divergence.judge(corpus.shard(100)) for corpus in corpora)


def test_shard_too_small_to_be_judged() -> None:
    divergence = Divergence(LIMIT)
    few = Counts(31, 31, 31, 0)
    for changes in ({"split_divergence": None}, {"split_divergence": 0.9}, {"counts": few}):
        assert divergence.judge(report(**changes)) == []
    assert divergence.unresolved == 3
