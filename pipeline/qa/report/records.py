"""One shard's evidence as the report keeps it: all its numbers, and none of its pictures."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.qa.evidence import QA_FOOTER_KEY, QaReport
from pipeline.storage import Storage

NUMBERS = ["key", "sample_index", "view", "kind", "psnr", "ssim", "lpips", "entropy", "top_code"]
PICTURES = ["original", "reconstruction"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoded view and what was measured on it.

    Attributes:
        shard: id of its shard.
        row: its place in the evidence of that shard.
        kind: `random`, or `unusual` for one that was chosen because it stands out.
        psnr: dB, peak 255; 100 for equal images.
        lpips: None if it was not computed.
        entropy: of the grid's own codes (bits).
        top_code: share of the grid that its most frequent code takes.
    """

    shard: str
    row: int
    key: str
    sample_index: int
    view: int
    kind: str
    psnr: float
    ssim: float
    lpips: float | None
    entropy: float
    top_code: float


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The numbers of one shard: its sums, and what was measured on the views that were decoded."""

    report: QaReport
    views: tuple[Sample, ...]

    @property
    def id(self) -> str:
        return self.report.shard["id"]


def read_record(storage: Storage, url: str) -> ShardRecord:
    """The numbers of one evidence file; its pictures are not fetched.

    Raises:
        NotFound: there is no such object.
        ValueError, OSError, ...: any of `DAMAGE`; it is no evidence.
    """
    with storage.open_random(url) as file:
        parquet = pq.ParquetFile(file)
        report = QaReport.from_json((parquet.metadata.metadata or {})[QA_FOOTER_KEY])
        rows = parquet.read(columns=NUMBERS).to_pylist()
    views = tuple(Sample(shard=report.shard["id"], row=number, **row) for number, row in enumerate(rows))
    if not all(_finite(view) for view in views):
        raise ValueError("a metric is not a finite number")
    return ShardRecord(report, views)


def read_pictures(storage: Storage, url: str) -> list[tuple[bytes, bytes]]:
    """(original, reconstruction) of every view of one evidence file, as WebP.

    Raises:
        NotFound: there is no such object.
        ValueError, OSError, ...: any of `DAMAGE`; it is no evidence.
    """
    with storage.open_random(url) as file:
        table = pq.read_table(file, columns=PICTURES)
    return list(zip(*(table[name].to_pylist() for name in PICTURES), strict=True))


def weight_files(records: Iterable[ShardRecord]) -> dict[str, list[str]]:
    """Metric -> the sha256 of every weight file that it was computed with: more than one if they were changed."""
    found: dict[str, set[str]] = {}
    for record in records:
        for metric, sha256 in record.report.weight_files.items():
            found.setdefault(metric, set()).add(sha256)
    return {metric: sorted(files) for metric, files in sorted(found.items())}


def _finite(view: Sample) -> bool:
    return all(map(math.isfinite, (view.psnr, view.ssim, view.lpips or 0.0, view.entropy, view.top_code)))
