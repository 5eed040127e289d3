"""From samples to what they say of the corpus: means with confidence intervals, and how the values spread."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.qa.statistics import entropy

Floats = npt.NDArray[np.float64]

MOST_BINS, FEWEST_BINS = 24, 6
Z_975 = 1.959964  # of the normal distribution
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)  # 1 to 10 degrees of freedom


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % confidence interval.

    Attributes:
        low, high: ends of the interval; None if there is too little to tell.
        images, shards: how many values it is from, and of how many shards.
    """

    mean: float
    low: float | None
    high: float | None
    images: int
    shards: int


@dataclass(frozen=True, slots=True)
class Spread:
    """The values of one metric.

    Attributes:
        quantiles: the 5th, 25th, 50th, 75th and 95th percentile.
    """

    mean: Estimate
    quantiles: list[float]


def estimate(values: Sequence[float], clusters: Sequence[str], weights: dict[str, int]) -> Estimate:
    """The mean over a corpus, from a few values of each of some shards.

    Images of one shard are more alike than images of two, so the shard is the unit of the interval: the ratio estimator
    of a cluster sample with its linearised variance (Cochran 1977, Sampling Techniques, section 11.8), Student's t with
    one degree of freedom less than shards. A single shard gives the interval of independent values.

    Args:
        values: at least one.
        clusters: the shard of each value.
        weights: rows of each shard.
    """
    numbers = np.asarray(values, float)
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    count = np.bincount(place)
    weight = np.array([max(1, weights[name]) for name in names], float)
    means = np.bincount(place, numbers) / count
    mean = float(weight @ means / weight.sum())
    if len(names) > 1:
        residuals = weight * (means - mean) / weight.sum()
        error = math.sqrt(len(names) / (len(names) - 1) * float(residuals @ residuals))
        half = t_975(len(names) - 1) * error
    elif len(numbers) > 1:
        half = t_975(len(numbers) - 1) * float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    else:
        return Estimate(mean, None, None, len(numbers), len(names))
    return Estimate(mean, mean - half, mean + half, len(numbers), len(names))


def spread(values: Sequence[float], clusters: Sequence[str], weights: dict[str, int]) -> Spread | None:
    """Mean and percentiles; None without values."""
    if not len(values):
        return None
    quantiles = np.quantile(np.asarray(values, float), (0.05, 0.25, 0.5, 0.75, 0.95)).tolist()
    return Spread(estimate(values, clusters, weights), quantiles)


def t_975(degrees: int) -> float:
    """The 97.5th percentile of Student's t (Cornish-Fisher above 10 degrees of freedom: within 0.0002)."""
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    z, n = Z_975, degrees
    first = (z**3 + z) / (4 * n)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    return z + first + second + third


def common_edges(series: Sequence[Sequence[float]]) -> Floats:
    """Edges of equal bins over all values of all series; there must be a value.

    Twice the cube root of the values in the longest series makes as many bins (Rice's rule), within bounds.
    """
    values = np.concatenate([np.asarray(numbers, float) for numbers in series])
    bins = math.ceil(2 * max(map(len, series)) ** (1 / 3))
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, min(MOST_BINS, max(FEWEST_BINS, bins)) + 1)


# --- codes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CodebookUse:
    """How a codebook is used.

    Attributes:
        size: codes there are.
        tokens: tokens counted.
        used: codes that occur at least once.
        entropy: of the codes' distribution (bits per token).
        perplexity: 2 ** entropy: as many equally frequent codes would have that entropy.
        top_share: share of the tokens that are the most frequent code.
    """

    size: int
    tokens: int
    used: int
    entropy: float
    perplexity: float
    top_share: float

    @property
    def dead(self) -> int:
        """Codes that never occur."""
        return self.size - self.used

    @property
    def usage(self) -> float:
        """Share of the codes that occur."""
        return self.used / self.size


def codebook_use(counts: npt.NDArray[np.int64]) -> CodebookUse:
    """Statistics of how often each code occurs, [codebook_size]."""
    tokens, bits = int(counts.sum()), entropy(counts)
    top = int(counts.max()) / tokens if tokens else 0.0
    return CodebookUse(len(counts), tokens, int(np.count_nonzero(counts)), bits, 2.0**bits, top)


def positional_entropy(tokens: npt.NDArray[Any]) -> Floats:
    """Entropy of the codes at each place of the grid over some rows, [h * w] (bits).

    Args:
        tokens: [rows, h * w]. No entropy can exceed log2(rows), so few rows show too little.
    """
    rows, width = tokens.shape
    if not rows:
        return np.zeros(width)
    ordered = np.sort(tokens, axis=0)
    result = np.empty(width)
    for place in range(width):
        column = ordered[:, place]
        ends = np.flatnonzero(np.diff(column)) + 1
        result[place] = entropy(np.array([b - a for a, b in pairwise([0, *ends.tolist(), rows])]))
    return result
