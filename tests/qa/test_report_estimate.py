"""What the report says of a corpus from a sample of it."""

import numpy as np
import pytest

from pipeline.qa.report.axes import powers, round_numbers
from pipeline.qa.report.estimate import codebook_use, common_edges, estimate, positional_entropy, spread, t_975


@pytest.mark.parametrize(
    ("degrees", "table"), [(1, 12.7062), (5, 2.5706), (10, 2.2281), (11, 2.2010), (30, 2.0423), (1000, 1.9623)]
)
def test_quantiles_of_students_t_against_printed_tables(degrees: int, table: float) -> None:
    assert t_975(degrees) == pytest.approx(table, abs=2e-4)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    """Shards of other means and sizes, images alike within a shard: what independent values would get wrong."""
    rng, covered, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        weights = rng.integers(50, 150, 30)
        means = rng.normal(25, 2, 30)
        values = [mean + rng.normal(0, 0.5) for mean in means for _ in range(4)]
        shards = [f"{shard}" for shard in range(30) for _ in range(4)]
        found = estimate(values, shards, {f"{i}": int(weight) for i, weight in enumerate(weights)})
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 25 <= found.high
    assert 0.92 < covered / trials < 0.98


def test_shards_count_by_their_rows() -> None:
    found = estimate([20.0, 30.0, 30.0], ["a", "b", "b"], {"a": 300, "b": 100})
    assert found.mean == pytest.approx(22.5)
    assert (found.images, found.shards) == (3, 2)


def test_single_value_has_no_interval() -> None:
    found = estimate([25.0], ["a"], {"a": 10})
    assert (found.mean, found.low, found.high) == (25.0, None, None)


def test_single_shard_has_the_interval_of_independent_values() -> None:
    found = estimate([24.0, 26.0, 28.0], ["a"] * 3, {"a": 10})
    assert (found.low, found.high) == (pytest.approx(26 - 4.3027 * 2 / 3**0.5), pytest.approx(26 + 4.3027 * 2 / 3**0.5))


def test_metric_without_values_has_no_spread() -> None:
    assert spread([], [], {}) is None


def test_codebook_with_dead_codes() -> None:
    use = codebook_use(np.array([10, 10, 10, 10, 0, 0, 0, 0]))
    assert (use.used, use.dead, use.usage, use.tokens) == (4, 4, 0.5, 40)
    assert (use.entropy, use.perplexity, use.top_share) == (2.0, 4.0, 0.25)


def test_codebook_without_tokens() -> None:
    use = codebook_use(np.zeros(8, np.int64))
    assert (use.used, use.tokens, use.entropy, use.top_share) == (0, 0, 0.0, 0.0)


def test_entropy_by_place() -> None:
    tokens = np.array([[7, 0, 0], [7, 1, 1], [7, 0, 2], [7, 1, 3]])
    assert positional_entropy(tokens) == pytest.approx([0.0, 1.0, 2.0])


@pytest.mark.parametrize(("values", "bins"), [(1, 6), (16, 6), (100, 10), (2000, 24), (10**5, 24)])
def test_bins_are_as_many_as_the_values_deserve(values: int, bins: int) -> None:
    edges = common_edges([np.arange(values, dtype=float), [5.0]])
    assert len(edges) == bins + 1


def test_bins_of_equal_values_have_a_width() -> None:
    edges = common_edges([[3.0, 3.0]])
    assert edges[0] < 3 < edges[-1]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.3, 1.0, [0.4, 0.6, 0.8, 1.0]),
        (5, 5, [5]),
        (-0.02, 0.02, [-0.02, -0.01, 0, 0.01, 0.02]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert round_numbers(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(1, 1000, [1, 10, 100, 1000]), (0.03, 0.1, [0.05, 0.1]), (1e-9, 1, [1e-9, 1e-7, 1e-5, 1e-3, 1e-1])],
)
def test_logarithmic_ticks_are_powers(low: float, high: float, ticks: list[float]) -> None:
    assert powers(low, high) == pytest.approx(ticks)
