"""Shards under inspection: photographs, engines with faults, and reports made by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.engine import Engine
from pipeline.qa.evidence import Evidence, QaReport, pack
from pipeline.qa.inspect import inspect_shard
from pipeline.qa.networks import Networks
from pipeline.qa.sampling import Sampler
from pipeline.tokens.schema import ColumnsConfig, Counts, PartFooter, Row, TokenSpec
from pipeline.tokens.writer import OutputConfig, PartWriter

ASSETS = Path(__file__).parents[2] / "jobs" / "assets"
DEMO_MODEL = ASSETS / "vq-f8-1024"
BATCH = 16


@cache
def _photos() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((ASSETS / "photos").glob("*.jpg"))]


def photo_crops(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Random crops [count, size, size, 3] of the shipped photographs."""
    rng = np.random.default_rng(seed)
    crops = np.empty((count, size, size, 3), np.uint8)
    for crop in crops:
        photo = _photos()[rng.integers(len(_photos()))]
        side = int(rng.uniform(0.35, 1) * min(photo.size))
        left, top = rng.integers(0, photo.width - side + 1), rng.integers(0, photo.height - side + 1)
        box = (left, top, left + side, top + side)
        crop[:] = photo.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return crops


@dataclass
class FaultyEngine:
    """An engine whose tokens go through `fault`."""

    engine: Engine
    fault: Callable[[np.ndarray], np.ndarray]
    fired: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def encode(self, images: np.ndarray) -> np.ndarray:
        right = self.engine.encode(images)
        wrong = self.fault(right)
        self.fired += int((wrong != right).sum())
        return wrong


def row(index: int, *, view: int = 0, height: int = 480, width: int = 640) -> Row:
    """A row of sample `index`."""
    crop = (0.0, 0.0, float(height), float(width))
    return Row(f"{index:05d}", index, view, height, width, crop, False, None, None, None)


def inspected(
    folder: Path,
    pixels: np.ndarray,
    engine: Any,
    *,
    name: str = "a",
    count: int = 4,
    networks: Networks | None = None,
) -> Evidence:
    """Tokenize `pixels` into a draft as the job does, and look at it."""
    path, spec = folder / f"{name}.parquet", engine.spec
    sampler, rows = Sampler(count, spec.codebook_size), [row(index) for index in range(len(pixels))]
    counts = Counts(len(pixels), len(pixels), len(pixels), 0)
    footer = PartFooter("f" * 64, {"id": name, "url": f"s3://corpus/{name}.tar"}, spec, counts)
    with PartWriter(path, spec, ColumnsConfig(), footer.shard["url"], OutputConfig(row_group_rows=BATCH)) as writer:
        for start in range(0, len(pixels), BATCH):
            some, images = rows[start : start + BATCH], pixels[start : start + BATCH]
            tokens = engine.encode(images)
            writer.add(some, tokens)
            sampler.add(some, images, tokens)
        writer.finish(footer)
    return inspect_shard(path, footer, sampler, engine, networks)


def report(name: str = "a", **changes: Any) -> QaReport:
    """A report of a healthy shard of 100 rows, but for the changes; `histogram` may be among them."""
    histogram = np.asarray(changes.pop("histogram", np.full(64, 100)))
    healthy: dict[str, Any] = {
        "fingerprint": "f" * 64,
        "shard": {"id": name, "url": f"s3://corpus/{name}.tar"},
        "counts": Counts(100, 100, 100, 0),
        "rejects_by_reason": {},
        "codebook_size": len(histogram),
        "packed": pack(histogram),
        "out_of_range": 0,
        "constant_grids": 0,
        "duplicate_grids": 0,
        "split_divergence": 0.02,
        "sizes": {"362": 100},
        "aspects": {"0.25": 100},
        "psnr": 24.0,
        "ssim": 0.8,
    }
    return QaReport(**{**healthy, **changes})


def spec_of(codes: int, side: int) -> TokenSpec:
    """A square grid."""
    return TokenSpec(codes, side, side)
