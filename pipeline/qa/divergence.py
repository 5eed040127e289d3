"""Which shards have other tokens than the rest: channels swapped, pixels squeezed, another corpus.

A shard's histogram is never that of the run, if only because its images are few. How far chance takes it can be read
off the shard itself: its even and its odd samples, n/2 each, differ by chance alone. Near equality the divergence of
two samples is proportional to 1/n + 1/N, whatever the tokens of one image have in common, so

    expected by chance, shard against run  =  divergence of the halves * (1/n + 1/N) / (2/n + 2/n)
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.qa.evidence import QaReport
from pipeline.qa.statistics import jensen_shannon

FIRST_SHARDS = 8  # before so many nothing is judged; then all of them are
OUTLYING = 6 * 1.4826  # of the median absolute deviation: 6 standard deviations of a normal distribution
MIN_SAMPLES = 32  # the halves of fewer images say little about chance
# Of what chance explains, as that is an estimate. Of 23,000 healthy shards of 32 to 64 photographs none was an outlier,
# of those whose colour channels were swapped 91 to 100 percent.
SLACK = 0.75
# Halves further apart than this are too small to know anything: the proportion above fails. Measured on photographs
# with 16 x 16 tokens: the excess of healthy shards stays below 0.05 bits for 32 images, and reaches 0.2 for 8.
RESOLVED_BITS = 0.5

Histogram = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outlier:
    """A shard whose tokens are unlike those of the run.

    Attributes:
        url: of the shard.
        excess: divergence beyond what chance explains (bits).
        limit: what it may be (bits).
    """

    url: str
    excess: float
    limit: float


class Divergence:
    """Compares each shard with all others so far; outliers do not stay among those.

    Args:
        limit: excess up to which a shard is no outlier, however alike the others are (bits).

    Attributes:
        unresolved: shards that were too small to be judged.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._run: Histogram | None = None
        self._waiting: list[QaReport] = []
        self._excesses: list[float] = []
        self.unresolved = 0

    def judge(self, report: QaReport) -> list[Outlier]:
        """Take in a shard; returns the outliers among those that can be judged now."""
        split = report.split_divergence
        if split is None or split > RESOLVED_BITS or report.counts.tokenized < MIN_SAMPLES:
            self.unresolved += 1
            return []
        histogram = report.histogram.astype(np.int64)
        self._run = histogram if self._run is None else self._run + histogram
        self._waiting.append(report)
        if len(self._excesses) + len(self._waiting) < FIRST_SHARDS:
            return []
        judged, self._waiting = [(waiting, *self._excess(waiting, self._run)) for waiting in self._waiting], []
        known = np.array(self._excesses + [excess for _, excess, _ in judged])
        usual = float(np.median(known) + OUTLYING * np.median(np.abs(known - np.median(known))))
        outliers = []
        for shard, excess, chance in judged:
            limit = max(self._limit + SLACK * chance, usual)
            if excess > limit:
                outliers.append(Outlier(shard.url, excess, limit))
                self._run = self._run - shard.histogram
            else:
                self._excesses.append(excess)
        return outliers

    @staticmethod
    def _excess(report: QaReport, run: Histogram) -> tuple[float, float]:
        """Divergence from the other shards beyond chance, and what chance explains (bits)."""
        own = report.histogram.astype(np.int64)
        others = run - own
        assert report.split_divergence is not None
        chance = report.split_divergence / 4 * (1 + own.sum() / others.sum())
        return jensen_shannon(own, others) - chance, chance
