"""What a shard's tokens tell without decoding them: numpy alone, a few operations per batch, nothing per row.

The cost is about 10 microseconds for a grid of 1,024 tokens.
"""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Tokens = npt.NDArray[Any]  # of any integer dtype

PSNR_OF_EQUALS = 100.0  # dB; stands for infinity, which neither JSON nor a mean can take
_ASPECT_STEP = 0.25  # octaves of width / height


def entropy(counts: npt.ArrayLike) -> float:
    """Shannon entropy of a histogram (bits); 0 of an empty one."""
    values = np.asarray(counts, np.float64)
    values = values[values > 0]
    if not len(values):
        return 0.0
    p = values / values.sum()
    return float(max(0.0, -(p * np.log2(p)).sum()))  # not -0.0


def perplexity(counts: npt.ArrayLike) -> float:
    """2 to the entropy: how many equally frequent codes would carry as much."""
    return float(2 ** entropy(counts))


def usage(counts: npt.ArrayLike) -> float:
    """The fraction of codes that occur at all."""
    values = np.asarray(counts)
    return float(np.mean(values > 0)) if len(values) else 0.0


def jensen_shannon(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Jensen-Shannon divergence of two histograms over the same codes, in [0, 1] bits (Lin 1991).

    Raises:
        ValueError: one of them is empty.
    """
    p, q = (np.asarray(counts, np.float64) for counts in (a, b))
    if not (p.sum() and q.sum()):
        raise ValueError("the divergence needs two histograms with tokens, got an empty one")
    p, q = p / p.sum(), q / q.sum()
    return float(np.clip(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, 0.0, 1.0))


def psnr(original: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two images of one shape (dB, peak 255); 100 of equal ones."""
    error = np.mean(np.square(original.astype(np.float64) - other.astype(np.float64)))
    return PSNR_OF_EQUALS if error == 0 else float(10 * np.log10(255**2 / error))


class ShardStatistics:
    """Sums over the rows of one shard, batch by batch.

    Attributes:
        halves: int64 [2, codes]; the tokens of samples with an even and with an odd index. How far these two are apart
            says how far chance alone takes a shard of this size and kind from the run.
        rows: views.
        out_of_range: tokens that are no code; they are in no histogram.
        constant_grids: rows whose grid has a single code in its middle, half as high and half as wide: blank images. At
            the edges the model's padding gives a blank image other codes.
        sizes: samples by short side (see `_size_buckets`).
        aspects: samples by width / height (see `_aspect_buckets`).
    """

    def __init__(self, codes: int) -> None:
        self.codes = codes
        self.halves: Counts = np.zeros((2, codes), np.int64)
        self.rows = self.out_of_range = self.constant_grids = 0
        self.sizes: Counter[str] = Counter()
        self.aspects: Counter[str] = Counter()
        self._hashes: list[npt.NDArray[np.uint64]] = []

    def add(self, tokens: Tokens, *, sample_index: Tokens, view: Tokens, height: Tokens, width: Tokens) -> None:
        """Count some rows.

        Args:
            tokens: [n, h, w].
            sample_index: [n].
            view: [n].
            height: [n] of the source (pixels).
            width: [n] of the source (pixels).
        """
        if not len(tokens):
            return
        grids, middles = (part.reshape(len(tokens), -1) for part in (tokens, _middle(tokens)))
        self.rows += len(grids)
        self.constant_grids += int(np.count_nonzero(middles.min(axis=1) == middles.max(axis=1)))
        self._hashes.append(_row_hashes(grids))
        for half in (0, 1):
            self._count(half, grids[sample_index % 2 == half].reshape(-1))
        first = view == 0  # a sample counts once, however many views it has
        self.sizes.update(_size_buckets(np.minimum(height, width)[first]))
        self.aspects.update(_aspect_buckets(width[first] / height[first]))

    def _count(self, half: int, tokens: Tokens) -> None:
        if len(tokens) and not (tokens.min() >= 0 and tokens.max() < self.codes):
            right = (tokens >= 0) & (tokens < self.codes)
            self.out_of_range += int(np.count_nonzero(~right))
            tokens = tokens[right]
        self.halves[half] += np.bincount(tokens, minlength=self.codes)

    @property
    def histogram(self) -> Counts:
        """Tokens by code [codes]."""
        histogram: Counts = self.halves.sum(axis=0)
        return histogram

    @property
    def duplicate_grids(self) -> int:
        """Rows whose grid occurred before."""
        return self.rows - len(np.unique(np.concatenate(self._hashes))) if self._hashes else 0

    @property
    def split_divergence(self) -> float | None:
        """Jensen-Shannon divergence of the two halves (bits); None if one of them is empty."""
        return jensen_shannon(*self.halves) if self.halves.sum(axis=1).all() else None


def _middle(tokens: Tokens) -> Tokens:
    top, left = tokens.shape[1] // 4, tokens.shape[2] // 4
    return tokens[:, top : tokens.shape[1] - top, left : tokens.shape[2] - left]


def _row_hashes(grids: Tokens) -> npt.NDArray[np.uint64]:
    """64 bits of each row: a sum with random odd weights, so that two rows of 16-bit tokens that differ have the same
    hash with a probability of about 2**-48."""
    weights = np.random.default_rng(0).integers(0, 1 << 64, grids.shape[1], np.uint64) | np.uint64(1)
    hashes: npt.NDArray[np.uint64] = grids.astype(np.uint64) @ weights
    return hashes


def _size_buckets(short_sides: Tokens) -> dict[str, int]:
    """Buckets by powers of sqrt(2), named by their lower edge in whole pixels."""
    steps, counts = np.unique(np.floor(2 * np.log2(short_sides)), return_counts=True)
    buckets = Counter[str]()
    for step, count in zip(steps.tolist(), counts.tolist(), strict=True):
        buckets[str(int(2 ** (step / 2)))] += count  # 1 and 1.4 share the name "1"
    return buckets


def _aspect_buckets(aspects: npt.NDArray[np.float64]) -> dict[str, int]:
    """Buckets of a quarter octave, named by the log2 of their lower edge."""
    steps, counts = np.unique(np.floor(np.log2(aspects) / _ASPECT_STEP), return_counts=True)
    return {
        format(step * _ASPECT_STEP, ".2f"): count for step, count in zip(steps.tolist(), counts.tolist(), strict=True)
    }
