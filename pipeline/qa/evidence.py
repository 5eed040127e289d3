"""What QA found out about one part: OUTPUT/qa/<shard_id>.parquet.

A row is a view that was looked at: the pixels that the model saw, and what the stored tokens give. The sums over all
rows of the part are a JSON document in the footer. Derived and replaceable: nothing but the report depends on it.
Columns and fields that came later (features, `weight_files`) may be absent.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import NotFound, UsageError
from pipeline.storage import Storage
from pipeline.tokens.schema import Counts, canonical_json
from pipeline.urls import join

QA_SCHEMA_VERSION = 1
QA_FOOTER_KEY = b"tokenmill-qa"
BASELINE_PARTS = 1000  # so many parts' means say enough of a run
MAX_CODES = 1 << 24  # a damaged footer must not ask for all memory

# What damaged evidence makes its reader raise: bytes that are no Parquet, no UTF-8, no base64, or another document.
DAMAGE = (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError)

NULLABLE = ("lpips", "original_features", "reconstruction_features")
SAMPLE_SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=name in NULLABLE)
        for name, kind in {
            "key": pa.string(),
            "sample_index": pa.uint32(),
            "view": pa.uint8(),
            "kind": pa.string(),
            "original": pa.binary(),
            "reconstruction": pa.binary(),
            "psnr": pa.float32(),
            "ssim": pa.float32(),
            "lpips": pa.float32(),
            "entropy": pa.float32(),
            "top_code": pa.float32(),
            "original_features": pa.list_(pa.float32()),
            "reconstruction_features": pa.list_(pa.float32()),
        }.items()
    ]
)


@dataclass(frozen=True, slots=True)
class QaReport:
    """The sums over one part: what the driver's gates judge.

    Attributes:
        fingerprint: of the part.
        shard: `id` and `url`.
        counts: the part's accounts.
        rejects_by_reason: samples by reason.
        codebook_size: K.
        packed: the histogram, packed; see `histogram`.
        out_of_range: tokens outside [0, K); they are not in the histogram.
        constant_grids: rows whose grid has one code in its middle: blank images.
        duplicate_grids: rows whose grid occurred before in the shard.
        split_divergence: Jensen-Shannon divergence between the tokens of even and of odd samples (bits); None if there
            is only one kind.
        sizes: samples by short side in pixels; buckets by powers of sqrt(2), named by their lower edge.
        aspects: samples by log2 of width / height; buckets of 0.25, named by their lower edge.
        psnr, ssim, lpips: means over the random samples; None if there are none, or the metric was not computed.
        not_computed: metric -> why.
        weight_files: metric -> sha256 of the weight file that it was computed with.
    """

    fingerprint: str
    shard: Mapping[str, str]
    counts: Counts
    rejects_by_reason: Mapping[str, int]
    codebook_size: int
    packed: bytes
    out_of_range: int
    constant_grids: int
    duplicate_grids: int
    split_divergence: float | None
    sizes: Mapping[str, int]
    aspects: Mapping[str, int]
    psnr: float | None
    ssim: float | None
    lpips: float | None = None
    not_computed: Mapping[str, str] = field(default_factory=dict)
    weight_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def histogram(self) -> npt.NDArray[np.uint32]:
        """Tokens by code [K]."""
        data = pa.decompress(self.packed, decompressed_size=4 * self.codebook_size, codec="zstd", asbytes=True)
        return np.frombuffer(data, "<u4")

    @property
    def url(self) -> str:
        """Canonical URL of the shard."""
        return self.shard["url"]

    def to_json(self) -> bytes:
        """The document of the footer."""
        document = asdict(self)
        document["histogram"] = base64.b64encode(document.pop("packed")).decode()
        return canonical_json(
            {"schema": QA_SCHEMA_VERSION, "histogram_bytes": 4 * self.codebook_size, "stages": {}, **document}
        )

    @classmethod
    def from_json(cls, data: bytes) -> "QaReport":
        """Read what `to_json` wrote, the histogram too.

        Raises:
            ValueError, OSError, ...: any of `DAMAGE`; it is no report, or of a schema that this version does not know.
        """
        document = json.loads(data)
        if document.pop("schema", None) != QA_SCHEMA_VERSION:
            raise ValueError(f"the schema of QA evidence must be {QA_SCHEMA_VERSION}")
        del document["histogram_bytes"], document["stages"]
        counts, packed = Counts(**document.pop("counts")), base64.b64decode(document.pop("histogram"))
        report = cls(counts=counts, packed=packed, **document)
        if not 0 < report.codebook_size <= MAX_CODES:
            raise ValueError(f"codebook_size must be in [1, {MAX_CODES}], got {report.codebook_size}")
        if len(report.histogram) != report.codebook_size:
            raise ValueError(f"the histogram must have {report.codebook_size} codes, got {len(report.histogram)}")
        if not {"id", "url"} <= report.shard.keys():
            raise ValueError(f"the shard must have id and url, got {', '.join(report.shard)}")
        return report


def pack(histogram: npt.NDArray[Any]) -> bytes:
    """A histogram as a report holds it: uint32, little-endian, zstd."""
    packed: bytes = pa.compress(histogram.astype("<u4").tobytes(), codec="zstd", asbytes=True)
    return packed


@dataclass(frozen=True, slots=True)
class SampleEvidence:
    """One view that was looked at.

    Attributes:
        key, sample_index, view: which one.
        kind: `random`, the same on every run; or `unusual`, chosen for its improbable tokens.
        original, reconstruction: WebP.
        psnr, ssim: of the exact pixels (dB, peak 255; [-1, 1]).
        lpips: None if it was not computed.
        entropy: of the grid's own tokens (bits).
        top_code: fraction of the grid that its most frequent code takes.
        original_features, reconstruction_features: Inception's, [d]; None if they were not computed, as of unusual
            views, and in evidence of earlier versions.
    """

    key: str
    sample_index: int
    view: int
    kind: str
    original: bytes
    reconstruction: bytes
    psnr: float
    ssim: float
    lpips: float | None
    entropy: float
    top_code: float
    original_features: Sequence[float] | None = None
    reconstruction_features: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that QA keeps of one part."""

    report: QaReport
    samples: Sequence[SampleEvidence]


def evidence_url(output: str, shard_id: str) -> str:
    """Where the evidence of a shard lies."""
    return join(output, "qa", f"{shard_id}.parquet")


def publish_evidence(storage: Storage, output: str, evidence: Evidence, folder: Path) -> None:
    """Put evidence into OUTPUT, in the place of what is there.

    Args:
        storage: of OUTPUT.
        output: URL.
        evidence: to publish.
        folder: for the draft, on a local disk.
    """
    path = folder / "evidence.parquet"
    write_evidence(path, evidence)
    storage.put(evidence_url(output, evidence.report.shard["id"]), path)


def write_evidence(path: Path, evidence: Evidence) -> None:
    """Write evidence to a local file."""
    table = pa.Table.from_pylist([asdict(sample) for sample in evidence.samples], SAMPLE_SCHEMA)
    table = table.replace_schema_metadata({QA_FOOTER_KEY: evidence.report.to_json()})
    # the pictures are compressed already
    pq.write_table(table, path, compression="none", use_dictionary=False)


def read_evidence(storage: Storage, url: str) -> Evidence:
    """The evidence of one part.

    Raises:
        NotFound: there is none.
        ValueError: it is damaged, or of a schema that this version does not know.
    """
    with storage.open_random(url) as file, _whole(url):
        table = pq.read_table(file)
        report = QaReport.from_json((table.schema.metadata or {})[QA_FOOTER_KEY])
        return Evidence(report, [SampleEvidence(**row) for row in table.to_pylist()])


def read_report(storage: Storage, url: str) -> QaReport:
    """The footer of the evidence alone.

    Raises:
        NotFound: there is none.
        ValueError: it is damaged, or of a schema that this version does not know.
    """
    with storage.open_random(url) as file, _whole(url):
        return QaReport.from_json((pq.read_metadata(file).metadata or {})[QA_FOOTER_KEY])


def mean_psnr(storage: Storage, output: str) -> float:
    """The mean PSNR of an earlier run: from its summary, else from the evidence of its parts (dB).

    What is damaged of it counts for nothing.

    Raises:
        UsageError: `output` has neither.
    """

    def psnr(url: str) -> float | None:
        try:
            return read_report(storage, url).psnr
        except ValueError:
            return None

    try:
        summary = json.loads(storage.read(join(output, "summary.json")))
        return float(summary["qa"]["psnr"])
    except (NotFound, KeyError, TypeError, ValueError):
        blobs = storage.list_folder(join(output, "qa"), ".parquet")
    some = blobs[:: -(-len(blobs) // BASELINE_PARTS)] if blobs else []
    found = [mean for blob in some if (mean := psnr(blob.url)) is not None]
    if not found:
        raise UsageError(f"qa.baseline must be an OUTPUT with QA evidence, got {output}, which has none")
    return float(np.mean(found))


@contextmanager
def _whole(url: str) -> Iterator[None]:
    """What damage makes the block raise is a ValueError after it."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(f"{url}: no QA evidence of Tokenmill ({type(error).__name__}: {error})") from error
