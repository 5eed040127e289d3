"""Gates: numbers that a run must keep to, or it is stopped (or marked) with the evidence named.

Pure: reports in, findings out. Some gates look at one shard, some at the run so far.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.qa.config import QaConfig
from pipeline.qa.divergence import Divergence
from pipeline.qa.evidence import QaReport
from pipeline.qa.statistics import entropy

RUN = "run"  # where a finding about all shards lies
JUDGED_COUNT = 8  # of fewer rows or samples a fraction says nothing
VANGUARD = 2  # actors that start before the canaries are judged: one to do them, one so that no small run is slower
SURE = 3.0  # standard errors that a drop of the mean must exceed the limit by


class Gate(StrEnum):
    """The gates, as findings name them."""

    GOLDEN = "golden_agreement"  # a device gives other tokens of the golden images (qa.min_golden_agreement)
    RANGE = "index_range"  # a token that is no code (qa.max_out_of_range)
    REJECTS = "reject_fraction"  # too many, in one shard or all (qa.max_shard_, limits.max_reject_fraction)
    DUPLICATES = "duplicate_grids"  # rows that repeat another's tokens (qa.max_duplicate_fraction)
    CONSTANTS = "constant_grids"  # rows of one code: blank images (qa.max_constant_fraction)
    PSNR = "psnr"  # the tokens do not give a shard's images back (qa.min_psnr)
    PSNR_DROP = "psnr_drop"  # the run's mean lies below that of qa.baseline (qa.max_psnr_drop)
    COLLAPSE = "codebook_collapse"  # few codes are used at all (qa.min_entropy)
    DIVERGENCE = "divergence"  # a shard's tokens are unlike the other shards' (qa.max_divergence)


@dataclass(frozen=True, slots=True)
class Finding:
    """A gate that failed.

    Attributes:
        gate: which one.
        where: URL of the shard, name of the actor, or `run`.
        value: what was found.
        limit: what it may be at most, or must be at least.
        message: a sentence for a person, with what to do.
    """

    gate: Gate
    where: str
    value: float
    limit: float
    message: str


class Gates:
    """Judges one run, report by report.

    Args:
        config: limits; a gate whose limit is null is open.
        baseline: mean PSNR of an earlier run (dB).

    Attributes:
        findings: all so far.
        judged: shards so far.
    """

    def __init__(self, config: QaConfig, baseline: float | None = None) -> None:
        self._config, self._baseline = config, baseline
        self._divergence = Divergence(config.max_divergence) if config.max_divergence is not None else None
        self._histogram: npt.NDArray[np.int64] | None = None
        self._rows = 0
        self._psnrs: list[float] = []
        self.findings: list[Finding] = []
        self.judged = 0

    @property
    def canaries(self) -> int:
        """Shards that are judged before any other begins."""
        return self._config.canary_shards if self._config.samples_per_shard else 0

    def holds_back(self, running: int) -> bool:
        """Whether the next shard must wait, as the canaries are not judged yet and `running` shards are under way."""
        return self.judged < self.canaries <= self.judged + running

    def actors(self, most: int) -> int:
        """How many of `most` actors may start: the rest of a fleet would only be paid for waiting for the canaries."""
        return min(most, max(VANGUARD, self.canaries)) if self.judged < self.canaries else most

    def golden(self, actor: str, agreement: float, accepted: float = 1.0) -> list[Finding]:
        """Judge a device.

        Args:
            actor: its name.
            agreement: fraction of the golden images' tokens that it gave (see `golden`).
            accepted: agreement of the run's precision with `exact` that the user accepts (model.min_agreement).
        """
        floor = self._config.min_golden_agreement
        limit = None if floor is None else min(floor, accepted)
        if limit is None or agreement >= limit:
            return []
        message = (
            f"{actor} gives {agreement:.2%} of the golden images' tokens, must be at least {limit:.2%} "
            "(qa.min_golden_agreement): look for wrong weights, changed preprocessing or a broken device"
        )
        return self._found([Finding(Gate.GOLDEN, actor, agreement, limit, message)])

    def shard(self, report: QaReport) -> list[Finding]:
        """Judge a shard, and the run with it; returns what is new."""
        self.judged += 1
        self._rows += report.counts.rows
        histogram = report.histogram.astype(np.int64)
        self._histogram = histogram if self._histogram is None else self._histogram + histogram
        if report.psnr is not None:
            self._psnrs.append(report.psnr)
        found = [finding for judge in _SHARD_GATES if (finding := judge(report, self._config))]
        return self._found([*found, *self._outliers(report), *self._collapse(), *self._drop()])

    def _found(self, findings: list[Finding]) -> list[Finding]:
        """Keep what is new: a finding about the run is made once."""
        known = {finding.gate for finding in self.findings if finding.where == RUN}
        new = [finding for finding in findings if finding.where != RUN or finding.gate not in known]
        self.findings += new
        return new

    def _outliers(self, report: QaReport) -> Iterator[Finding]:
        for outlier in self._divergence.judge(report) if self._divergence else []:
            message = (
                f"{outlier.url}: its tokens are {outlier.excess:.3f} bits further from the other shards' than chance "
                f"explains, must be at most {outlier.limit:.3f}: look at its pictures; if such shards belong to the "
                "corpus, raise qa.max_divergence or set qa.on_fail=mark"
            )
            yield Finding(Gate.DIVERGENCE, outlier.url, outlier.excess, outlier.limit, message)

    def _collapse(self) -> Iterator[Finding]:
        floor, histogram = self._config.min_entropy, self._histogram
        if floor is None or histogram is None or self._rows < JUDGED_COUNT:
            return
        bits, most = entropy(histogram), float(np.log2(max(2, len(histogram))))
        if bits < floor * most:
            message = (
                f"the run's tokens are worth {2**bits:.1f} equally frequent codes of {len(histogram)}, must be worth "
                f"at least {2 ** (floor * most):.1f} (qa.min_entropy is {floor:g}): the codebook collapsed, or the "
                "images are blank"
            )
            yield Finding(Gate.COLLAPSE, RUN, bits / most, floor, message)

    def _drop(self) -> Iterator[Finding]:
        limit = self._config.max_psnr_drop
        if limit is None or self._baseline is None or len(self._psnrs) < JUDGED_COUNT:
            return
        mean, error = float(np.mean(self._psnrs)), float(np.std(self._psnrs, ddof=1) / np.sqrt(len(self._psnrs)))
        drop = self._baseline - mean
        if drop - SURE * error > limit:
            message = (
                f"the mean PSNR of {len(self._psnrs)} shards is {mean:.1f} +- {error:.1f} dB, {drop:.1f} below "
                f"qa.baseline's {self._baseline:.1f}, must be at most {limit:g} below (qa.max_psnr_drop): compare "
                "weights, recipe and precision"
            )
            yield Finding(Gate.PSNR_DROP, RUN, drop, limit, message)


# --- gates that look at one shard ------------------------------------------------------------------------------------


def rejects_of_run(accounts: Mapping[str, Any], limit: float) -> Finding | None:
    """Whether too many of all samples were rejected.

    Args:
        accounts: of all committed parts, as summary.json has them.
        limit: `limits.max_reject_fraction`.
    """
    wanted = accounts["samples"] - accounts.get("filtered", 0)
    fraction = accounts["rejects"] / wanted if wanted else 0.0
    if fraction <= limit:
        return None
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in accounts["rejects_by_reason"].items())
    message = f"{fraction:.1%} of the samples were rejected (limits.max_reject_fraction is {limit:.1%}): {reasons}"
    return Finding(Gate.REJECTS, RUN, fraction, limit, message)


_ShardGate = Callable[[QaReport, QaConfig], Finding | None]


def _range(report: QaReport, config: QaConfig) -> Finding | None:
    text = f"{report.out_of_range} tokens are outside the {report.codebook_size} codes (qa.max_out_of_range)"
    return _most(Gate.RANGE, report, report.out_of_range, config.max_out_of_range, text)


def _rejects(report: QaReport, config: QaConfig) -> Finding | None:
    rejects, samples, limit = report.counts.rejects, report.counts.wanted, config.max_shard_reject_fraction
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.rejects_by_reason.items())
    text = f"{rejects} of {samples} samples were rejected: {reasons} (qa.max_shard_reject_fraction)"
    return _most(Gate.REJECTS, report, _fraction(rejects, samples), limit, text)


def _duplicates(report: QaReport, config: QaConfig) -> Finding | None:
    count, rows, limit = report.duplicate_grids, report.counts.rows, config.max_duplicate_fraction
    text = f"{count} of {rows} rows repeat the tokens of another: placeholders? (qa.max_duplicate_fraction)"
    return _most(Gate.DUPLICATES, report, _fraction(count, rows), limit, text)


def _constants(report: QaReport, config: QaConfig) -> Finding | None:
    count, rows, limit = report.constant_grids, report.counts.rows, config.max_constant_fraction
    text = f"{count} of {rows} rows hold one code all over their middle: blank images? (qa.max_constant_fraction)"
    return _most(Gate.CONSTANTS, report, _fraction(count, rows), limit, text)


def _psnr(report: QaReport, config: QaConfig) -> Finding | None:
    if report.psnr is None or config.min_psnr is None or report.psnr >= config.min_psnr:
        return None
    message = (
        f"{report.url}: the tokens of its random samples give their images back at {report.psnr:.1f} dB, must be at "
        f"least {config.min_psnr:g} (qa.min_psnr): look at them beside their reconstructions"
    )
    return Finding(Gate.PSNR, report.url, report.psnr, config.min_psnr, message)


_SHARD_GATES: tuple[_ShardGate, ...] = (_range, _rejects, _duplicates, _constants, _psnr)


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole >= JUDGED_COUNT else 0.0


def _most(gate: Gate, report: QaReport, value: float, limit: float | None, text: str) -> Finding | None:
    if limit is None or value <= limit:
        return None
    return Finding(gate, report.url, float(value), float(limit), f"{report.url}: {text}; must be at most {limit:g}")
