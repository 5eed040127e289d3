"""A look at one part before it is published: its tokens counted, some of them decoded and held against their images.

Everything is read back from the draft: what is judged is what will be stored.
"""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from pipeline.engine import Images, Indices
from pipeline.qa.evidence import Evidence, QaReport, SampleEvidence, pack
from pipeline.qa.metrics import ssim
from pipeline.qa.sampling import Chosen, Pixels, SampleKind, Sampler
from pipeline.qa.statistics import ShardStatistics, entropy, psnr
from pipeline.tokens.schema import PartFooter, TokenSpec

READ_ROWS = 2000  # at once; 4 MB of tokens at 1,024 per row
WEBP = {"quality": 85, "method": 1}  # 7 ms for 256 pixels; method 4, Pillow's default, 29 ms for a tenth fewer bytes
NOT_COMPUTED = {"lpips": "its networks are no part of Tokenmill, and a job downloads nothing"}
_COLUMNS = ["sample_index", "view", "tokens", "height", "width"]
_VIEWS = 256  # of one sample at most: `view` is a uint8


class Decoder(Protocol):
    """What gives images for tokens: an engine."""

    def decode(self, indices: Indices, /) -> Images:
        """Images uint8 [n, H, W, 3] of indices [n, h, w]."""
        ...


def inspect_shard(path: Path, footer: PartFooter, sampler: Sampler, decoder: Decoder) -> Evidence:
    """Look at a finished part.

    Args:
        path: the part on local disk.
        footer: as written into it.
        sampler: has seen every row of it.
        decoder: the engine that made the tokens.
    """
    statistics = ShardStatistics(footer.spec.codebook_size)
    chosen = sampler.chosen()
    grids = _read(path, footer.spec, statistics, chosen)
    samples = [] if statistics.out_of_range else _compare(chosen, grids, decoder)  # a GPU dies of a wrong index
    drawn = [sample for sample in samples if sample.kind == SampleKind.RANDOM]
    report = QaReport(
        fingerprint=footer.fingerprint,
        shard={"id": footer.shard["id"], "url": footer.shard["url"]},
        counts=footer.counts,
        rejects_by_reason=dict(Counter(rejected.reject.reason for rejected in footer.rejects)),
        codebook_size=footer.spec.codebook_size,
        packed=pack(statistics.histogram),
        out_of_range=statistics.out_of_range,
        constant_grids=statistics.constant_grids,
        duplicate_grids=statistics.duplicate_grids,
        split_divergence=statistics.split_divergence,
        sizes=dict(statistics.sizes),
        aspects=dict(statistics.aspects),
        psnr=float(np.mean([sample.psnr for sample in drawn])) if drawn else None,
        ssim=float(np.mean([sample.ssim for sample in drawn])) if drawn else None,
        not_computed=NOT_COMPUTED,
    )
    return Evidence(report, samples)


def _read(path: Path, spec: TokenSpec, statistics: ShardStatistics, chosen: Sequence[Chosen]) -> Indices:
    """Count all rows; returns the stored grids [n, h, w] of the chosen ones, in their order."""
    shape = spec.grid_height, spec.grid_width
    places = {view.sample_index * _VIEWS + view.view: number for number, view in enumerate(chosen)}
    wanted = np.array(list(places), np.int64)
    grids: dict[int, npt.NDArray[Any]] = {}
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(READ_ROWS, columns=_COLUMNS):
            columns = {name: batch.column(name).to_numpy() for name in _COLUMNS if name != "tokens"}
            tokens = batch.column("tokens").flatten().to_numpy().reshape(-1, *shape)
            statistics.add(tokens, **columns)
            place = columns["sample_index"].astype(np.int64) * _VIEWS + columns["view"]
            for row in np.flatnonzero(np.isin(place, wanted)):
                grids[places[int(place[row])]] = tokens[row].astype(np.int64)
    assert len(grids) == len(chosen), f"{path}: the part must hold the {len(chosen)} views chosen, got {len(grids)}"
    return np.array([grids[number] for number in range(len(chosen))], np.int64).reshape(-1, *shape)


def _compare(chosen: Sequence[Chosen], grids: Indices, decoder: Decoder) -> list[SampleEvidence]:
    if not chosen:
        return []
    reconstructions = decoder.decode(grids)
    similarities = ssim(np.stack([view.pixels for view in chosen]), reconstructions)
    samples = []
    for view, grid, reconstruction, similarity in zip(chosen, grids, reconstructions, similarities, strict=True):
        counts = np.unique(grid, return_counts=True)[1]
        samples.append(
            SampleEvidence(
                key=view.key,
                sample_index=view.sample_index,
                view=view.view,
                kind=view.kind.value,
                original=_webp(view.pixels),
                reconstruction=_webp(reconstruction),
                psnr=psnr(view.pixels, reconstruction),
                ssim=similarity,
                lpips=None,
                entropy=entropy(counts),
                top_code=float(counts.max() / grid.size),
            )
        )
    return samples


def _webp(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", **WEBP)
    return out.getvalue()
