"""Outputs of runs with QA evidence, made by hand: the files as their formats are documented, by none of our writers."""

import base64
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FINGERPRINT = "e" * 64
TRIAL = {"precision": "exact", "agreement": 1.0, "rate": 0.0, "overflowed": 0}
SIDE, GRID = 32, 4  # pixels of a picture, tokens a side
METRICS = ("psnr", "ssim", "lpips", "entropy", "top_code")
REAL = pa.float32()
COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "sample_index": pa.uint32(),
    "view": pa.uint8(),
    "kind": pa.string(),
    "original": pa.binary(),
    "reconstruction": pa.binary(),
    **dict.fromkeys(METRICS, REAL),
}


def picture(seed: int, side: int = SIDE) -> bytes:
    """A WebP of smooth random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC).save(sink, "WEBP", quality=85)
    return sink.getvalue()


def view(key: str, number: int, *, kind: str = "random", seed: int | None = None, **metrics: Any) -> dict[str, Any]:
    """One row of evidence."""
    seed = number if seed is None else seed
    usual = {"psnr": 25.0, "ssim": 0.8, "lpips": None, "entropy": 3.0, "top_code": 0.2}
    pictures = {"original": picture(number), "reconstruction": picture(seed + 1)}
    return {"key": key, "sample_index": number, "view": 0, "kind": kind} | pictures | usual | metrics


def pack(histogram: Any) -> str:
    """A histogram as the footer has it."""
    data = np.asarray(histogram, "<u4").tobytes()
    return base64.b64encode(pa.compress(data, codec="zstd", asbytes=True)).decode()


@dataclass
class ShardCase:
    """One shard and what QA says of it.

    Attributes:
        views: rows of its evidence; None: it has none.
        footer: fields of the evidence's footer that are to be other than usual.
    """

    name: str
    rows: int = 20
    rejects: dict[str, int] = field(default_factory=dict)
    histogram: Any = None
    views: list[dict[str, Any]] | None = field(default_factory=list)
    footer: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"s3://corpus/{self.name}.tar"

    @property
    def id(self) -> str:
        return f"{self.name}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"

    @property
    def counts(self) -> dict[str, int]:
        rejects = sum(self.rejects.values())
        return {
            "samples": self.rows + rejects,
            "tokenized": self.rows,
            "rows": self.rows,
            "rejects": rejects,
            "filtered": 0,
        }


@dataclass
class RunCase:
    """A run to be written.

    Attributes:
        committed: so many of the shards have a part; None: all.
        summary: fields of summary.json; None: there is no such file.
    """

    shards: list[ShardCase]
    codes: int = 16
    committed: int | None = None
    summary: dict[str, Any] | None = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)

    def write(self, output: Path) -> Path:
        """Make OUTPUT."""
        for folder in ("tokens", "qa"):
            (output / folder).mkdir(parents=True)
        (output / "job.json").write_text(json.dumps(self._job() | self.job))
        columns = {
            "shard_id": [shard.id for shard in self.shards],
            "url": [shard.url for shard in self.shards],
            "size": pa.array([1000] * len(self.shards), pa.int64()),
            "etag": pa.array([None] * len(self.shards), pa.string()),
        }
        pq.write_table(pa.table(columns), output / "manifest.parquet")
        done = self.shards[: self.committed]
        for number, shard in enumerate(done):
            self._write_part(shard, output / "tokens" / f"{shard.id}.parquet", number)
            if shard.views is not None:
                self.write_evidence(shard, output / "qa" / f"{shard.id}.parquet")
        if self.summary is not None:
            (output / "summary.json").write_text(json.dumps(self._summary(done) | self.summary))
            if not self.summary:
                (output / "_SUCCESS").touch()
        return output

    def write_evidence(self, shard: ShardCase, path: Path) -> None:
        """The evidence of one shard, in the place of what is there."""
        columns = {name: pa.array([row[name] for row in shard.views or []], kind) for name, kind in COLUMNS.items()}
        metadata = {b"tokenmill-qa": json.dumps(self._footer(shard) | shard.footer).encode()}
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)

    def _footer(self, shard: ShardCase) -> dict[str, Any]:
        drawn = [row["psnr"] for row in shard.views or [] if row["kind"] == "random"]
        histogram = shard.histogram if shard.histogram is not None else np.full(self.codes, 20)
        return {
            "schema": 1,
            "fingerprint": FINGERPRINT,
            "shard": {"id": shard.id, "url": shard.url},
            "counts": shard.counts,
            "rejects_by_reason": shard.rejects,
            "codebook_size": self.codes,
            "histogram": pack(histogram),
            "histogram_bytes": 4 * self.codes,
            "out_of_range": 0,
            "constant_grids": 0,
            "duplicate_grids": 0,
            "split_divergence": 0.01,
            "sizes": {"256": shard.rows - 2, "362": 2},
            "aspects": {"0.00": shard.rows - 1, "-0.50": 1},
            "psnr": float(np.mean(drawn)) if drawn else None,
            "ssim": 0.8 if drawn else None,
            "lpips": None,
            "not_computed": {"lpips": "no weights"},
            "stages": {},
        }

    def _job(self) -> dict[str, Any]:
        identity = {"weights": "ab" * 32, "precision": "exact", "image": {"recipe": "center-crop", "size": SIDE}}
        return {
            "fingerprint": FINGERPRINT,
            "identity": identity,
            "spec": {"codebook_size": self.codes, "grid_height": GRID, "grid_width": GRID},
            "config": {"model": {"path": "models/vq"}},
            "calibration": {"device": "cpu", "trials": [TRIAL], "versions": {"torch": "2.13.0"}},
            "tokenmill": "0.1.0",
        }

    def _summary(self, done: list[ShardCase]) -> dict[str, Any]:
        reasons: dict[str, int] = {}
        for shard in done:
            for reason, count in shard.rejects.items():
                reasons[reason] = reasons.get(reason, 0) + count
        counts = {
            name: sum(shard.counts[name] for shard in done)
            for name in ("samples", "tokenized", "rows", "rejects", "filtered")
        }
        shards = {"total": len(self.shards), "committed": len(done), "quarantined": 0}
        return {"shards": shards, **counts, "rejects_by_reason": reasons, "bytes": 5000, "quarantined": []}

    def _write_part(self, shard: ShardCase, path: Path, seed: int) -> None:
        """A part as far as the report reads it: tokens and footer."""
        tokens = np.random.default_rng(seed).integers(0, self.codes, shard.rows * GRID * GRID).astype(np.uint16)
        table = pa.table({"tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens), GRID * GRID)})
        rejected = [[f"r{i}", i, "decode", why] for why, n in shard.rejects.items() for i in range(n)]
        text = json.dumps([[*reject, ""] for reject in rejected]).encode()
        footer = {
            "schema": 1,
            "fingerprint": FINGERPRINT,
            "shard": {"id": shard.id, "url": shard.url, "size": 1000, "etag": None},
            "spec": {"codebook_size": self.codes, "grid_height": GRID, "grid_width": GRID},
            "counts": shard.counts,
            "warnings": {},
            "rejects": base64.b64encode(pa.compress(text, codec="zstd", asbytes=True)).decode() if rejected else "",
            "rejects_bytes": len(text) if rejected else 0,
        }
        pq.write_table(table.replace_schema_metadata({b"tokenmill": json.dumps(footer).encode()}), path)


def healthy(shards: int = 5, views: int = 3, **changes: Any) -> RunCase:
    """A finished run with nothing amiss; PSNR differs from view to view, all codes are used."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(shards):
        name = f"{number:05d}"
        rows = [
            view(
                f"{name}/{i}",
                100 * number + i,
                psnr=float(rng.normal(26, 2)),
                kind="random" if i < views - 1 else "unusual",
            )
            for i in range(views)
        ]
        cases.append(ShardCase(name, views=rows, histogram=rng.integers(10, 40, 16)))
    return RunCase(cases, **changes)
