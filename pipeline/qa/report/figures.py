"""Every number of the report, from the runs it is about: what report.json holds and the page shows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.qa.report.estimate import (
    CodebookUse,
    Spread,
    codebook_use,
    positional_entropy,
    spread,
)
from pipeline.qa.report.frechet import Rfid
from pipeline.qa.report.records import Sample, ShardRecord, weight_files
from pipeline.qa.report.run import SUMS, Coverage, Run
from pipeline.qa.statistics import jensen_shannon

OUTLIERS_PER_COLUMN = 40  # five columns: 200 shards at most, and those that gates accuse
NAMES = 1000  # of shards listed in a document


@dataclass(frozen=True, slots=True)
class Metric:
    """A number measured on every decoded view.

    Attributes:
        digits: shown after the point.
        good: what is better: "higher", "lower", or "" where neither is.
    """

    name: str
    title: str
    unit: str
    digits: int
    good: str
    meaning: str


METRICS = (
    Metric("psnr", "PSNR", "dB", 2, "higher", "peak signal-to-noise ratio of the reconstruction, peak 255"),
    Metric("ssim", "SSIM", "", 4, "higher", "structural similarity, Gaussian window of 11 pixels"),
    Metric("lpips", "LPIPS", "", 4, "lower", "learned perceptual distance, on features of VGG16"),
    Metric("entropy", "Grid entropy", "bits", 2, "", "entropy of the codes of one grid"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a run stands.

    Attributes:
        level: `good`, `bad` (a gate failed, or shards are quarantined) or `open` (not finished).
        exit_code: of the run, as far as OUTPUT tells; None while it is not finished.
    """

    level: str
    headline: str
    detail: str
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class ShardLine:
    """One shard in the table of outliers; fractions are of its rows, rejects of its samples.

    Attributes:
        divergence: of its codes from those of all other shards read (bits).
        chance: what of it chance explains (see `pipeline.qa.divergence`); None for shards too small to tell.
    """

    id: str
    url: str
    rows: int
    divergence: float
    chance: float | None
    psnr: float | None
    rejects: float
    duplicates: float
    constant: float
    accused: bool


@dataclass(frozen=True, slots=True)
class Positions:
    """Entropy of the codes by place in the grid (bits).

    Attributes:
        limit: the most that so many rows can show.
        grid: row-major, `height` x `width`.
    """

    rows: int
    parts: int
    height: int
    width: int
    mean: float
    low: float
    high: float
    limit: float
    grid: list[float]


@dataclass(frozen=True, slots=True)
class Speed:
    """Throughput of a run.

    Attributes:
        bound: the stage whose lanes were busy longest, and their share of the time.
        device_busy: share of the time the devices computed.
        device: what they are.
        price: of an actor (the user's currency per hour), None if the user did not tell.
        cost: of the actor-hours, likewise.
        expected_seconds, expected_rows: the run's own forecast; None if it made none.
        rows: made.
        waits: share of their time that shards waited for pixels, by who decoded: `here` or `remote`.
    """

    seconds: float
    images_per_second: float
    actor_hours: float
    bound: str
    busy: dict[str, float]
    device_busy: float
    device: str
    price: float | None
    cost: float | None
    expected_seconds: float | None
    expected_rows: int | None
    rows: int
    waits: dict[str, float]


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The numbers of one run."""

    output: str
    name: str
    verdict: Verdict
    shards: Mapping[str, int]
    accounts: Mapping[str, int]
    rejects_by_reason: Mapping[str, int]
    filtered_by_rule: Mapping[str, int]
    gates: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]
    coverage: Coverage
    images: Mapping[str, int]
    metrics: Mapping[str, Spread | None]
    rfid: Rfid | None
    not_computed: Mapping[str, str]
    codebook: CodebookUse
    positions: Positions | None
    outliers: list[ShardLine]
    sizes: Mapping[str, int]
    aspects: Mapping[str, int]
    speed: Speed | None
    provenance: Mapping[str, str]


def figures(run: Run) -> RunFigures:
    """All numbers of a run."""
    total = total_histogram(run)
    views = [view for record in run.records for view in record.views]
    return RunFigures(
        output=run.url,
        name=run.url.rpartition("/")[2],
        verdict=verdict(run),
        shards=run.state["shards"],
        accounts={name: run.state[name] for name in SUMS},
        rejects_by_reason=run.state["rejects_by_reason"],
        filtered_by_rule=run.state.get("filtered_by_rule", {}),
        gates=run.gates,
        quarantined=list(run.state["quarantined"])[:NAMES],
        coverage=run.coverage,
        images=dict(Counter(view.kind for view in views)),
        metrics={metric.name: metric_spread(run, metric.name) for metric in METRICS},
        rfid=run.rfid,
        not_computed={name: why for record in run.records for name, why in record.report.not_computed.items()},
        codebook=codebook_use(total),
        positions=_positions(run),
        outliers=outliers(run, total),
        sizes=_buckets(record.report.sizes for record in run.records),
        aspects=_buckets(record.report.aspects for record in run.records),
        speed=_speed(run),
        provenance=dict(_provenance(run.job))
        | {f"weights of {metric}": ", ".join(files) for metric, files in weight_files(run.records).items()},
    )


def verdict(run: Run) -> Verdict:
    """How the run stands, in words."""
    shards = run.state["shards"]
    committed = f"{shards['committed']:,} of {shards['total']:,} shards are committed"
    if run.gates:
        names = ", ".join(sorted({str(gate.get("gate", "gate")) for gate in run.gates}))
        return Verdict("bad", f"Failed: {names}", f"{committed}. The findings are listed below.", 3)
    if not run.finished:
        detail = "The run is at work, or was stopped; the numbers are of what is there now."
        return Verdict("open", "Not finished", f"{committed}. {detail}", None)
    if shards["quarantined"]:
        detail = "Mend them and run again with --retry-quarantined."
        return Verdict("bad", f"{shards['quarantined']:,} shards quarantined", f"{committed}. {detail}", 3)
    if not run.state["success"]:
        return Verdict("open", "Stopped", f"{committed}. Run the same command again to go on.", 4)
    judged = "No gate failed." if run.records else "There is no evidence that QA could read: nothing was judged."
    return Verdict("good", "Complete", f"{committed}, every sample accounted for once. {judged}", 0)


# --- samples ---------------------------------------------------------------------------------------------------------


def random_views(run: Run) -> list[Sample]:
    """The views that were chosen by hash alone: those that may speak for the corpus."""
    return [view for record in run.records for view in record.views if view.kind == "random"]


def values(run: Run, metric: str) -> tuple[list[float], list[str]]:
    """A metric of the random views that have it, and the shard of each."""
    some = [(getattr(view, metric), view.shard) for view in random_views(run)]
    return [value for value, _ in some if value is not None], [shard for value, shard in some if value is not None]


def metric_spread(run: Run, metric: str) -> Spread | None:
    """Mean, interval and percentiles of a metric, None if it was not computed."""
    return spread(*values(run, metric), row_counts(run))


def row_counts(run: Run) -> dict[str, int]:
    """Rows of each shard that was read."""
    return {record.id: record.report.counts.rows for record in run.records}


# --- shards ----------------------------------------------------------------------------------------------------------


def total_histogram(run: Run) -> npt.NDArray[np.int64]:
    """How often each code occurs in all shards read."""
    total = np.zeros(run.codebook_size, np.int64)
    for record in run.records:
        total += record.report.histogram
    return total


def outliers(run: Run, total: npt.NDArray[np.int64]) -> list[ShardLine]:
    """The shards at the far end of each column, most divergent first."""
    lines = [_line(record, total, record.id in run.accused) for record in run.records]
    worst = {line.id for line in lines if line.accused}
    for column in (
        lambda line: line.divergence,
        lambda line: -(line.psnr if line.psnr is not None else 1e9),
        lambda line: line.rejects,
        lambda line: line.duplicates,
        lambda line: line.constant,
    ):
        worst |= {line.id for line in sorted(lines, key=column, reverse=True)[:OUTLIERS_PER_COLUMN]}
    return sorted((line for line in lines if line.id in worst), key=lambda line: (-line.divergence, line.id))


def _line(record: ShardRecord, total: npt.NDArray[np.int64], is_accused: bool) -> ShardLine:
    report = record.report
    counts, own = report.counts, report.histogram.astype(np.int64)
    rows, samples, others = max(1, counts.rows), max(1, counts.wanted), total - own
    split, comparable = report.split_divergence, bool(own.any() and others.any())
    return ShardLine(
        id=record.id,
        url=report.url,
        rows=counts.rows,
        divergence=jensen_shannon(own, others) if comparable else 0.0,
        chance=None if split is None or not comparable else split / 4 * (1 + float(own.sum() / others.sum())),
        psnr=report.psnr,
        rejects=counts.rejects / samples,
        duplicates=report.duplicate_grids / rows,
        constant=report.constant_grids / rows,
        accused=is_accused,
    )


def _buckets(counts: Iterator[Mapping[str, int]]) -> dict[str, int]:
    """Sums by bucket, in order of the buckets' edges."""
    total = Counter[str]()
    for some in counts:
        total.update(some)
    return dict(sorted(total.items(), key=lambda item: float(item[0])))


# --- the rest --------------------------------------------------------------------------------------------------------


def _positions(run: Run) -> Positions | None:
    rows, spec = len(run.tokens), run.job["spec"]
    if not rows:
        return None
    grid = positional_entropy(run.tokens)
    return Positions(
        rows=rows,
        parts=run.token_parts,
        height=spec["grid_height"],
        width=spec["grid_width"],
        mean=float(grid.mean()),
        low=float(grid.min()),
        high=float(grid.max()),
        limit=float(np.log2(min(rows, run.codebook_size))),
        grid=grid.round(3).tolist(),
    )


def _speed(run: Run) -> Speed | None:
    log = run.throughput
    if log is None or not log.points:
        return None
    ends, rates, shares = log.intervals()
    lengths = np.diff(ends, prepend=0.0)
    busy = {stage: float(share @ lengths / ends[-1]) for stage, share in shares.items()}
    hours, price = log.actor_hours(), log.price_per_actor_hour
    return Speed(
        seconds=float(ends[-1]),
        images_per_second=float(rates @ lengths / ends[-1]),
        actor_hours=hours,
        bound=max(busy, key=lambda stage: busy[stage]),
        busy=busy,
        device_busy=busy["encode"],
        device=str((run.job.get("calibration") or {}).get("device", "")),
        price=price,
        cost=None if price is None else hours * price,
        expected_seconds=log.forecast.seconds if log.forecast else None,
        expected_rows=log.forecast.rows if log.forecast else None,
        rows=log.points[-1].images,
        waits={where: one.waited / one.lasted for where, one in log.supply.items() if one.lasted},
    )


def _provenance(job: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value of all that made the tokens what they are, and of what they were made on."""
    identity, calibration = job.get("identity", {}), job.get("calibration") or {}
    yield "fingerprint", str(job["fingerprint"])
    yield "weights", str(identity.get("weights", "not recorded"))
    yield "weights from", str(job.get("config", {}).get("model", {}).get("path", "not recorded"))
    yield "precision", str(identity.get("precision", "not recorded"))
    spec = job["spec"]
    shape = f"{spec['grid_height']} x {spec['grid_width']}" if spec["grid_height"] else "several shapes"
    yield "tokens", f"{shape}, {spec['codebook_size']:,} codes"
    for section in ("image", "columns"):
        yield from _leaves(identity.get(section, {}), section)
    yield "tokenmill", str(job.get("tokenmill", "not recorded"))
    yield from _leaves(calibration.get("versions", {}), "versions")
    if calibration:
        yield "device", str(calibration.get("device", "not recorded"))
        for trial in calibration.get("trials", ()):
            out = f", {trial['overflowed']} images out of range" if trial["overflowed"] else ""
            rate = f", {trial['rate']:,.1f} images/s" if trial["rate"] else ""
            yield f"agreement of {trial['precision']} with exact", f"{trial['agreement']:.4f}{rate}{out}"
        yield "agreement with exact decoding", f"{calibration.get('decode_agreement', 1):.4f}"
    yield from _leaves(identity.get("model", {}), "model")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key], f"{name}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield name, ", ".join(map(str, value))
    else:
        yield name, "none" if value is None else str(value)
