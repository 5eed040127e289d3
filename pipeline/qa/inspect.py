"""A look at one part before it is published: its tokens counted, some of them decoded and held against their images.

Everything is read back from the draft: what is judged is what will be stored.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from pipeline.engine import Images, Indices
from pipeline.qa.evidence import Evidence, QaReport, SampleEvidence, pack
from pipeline.qa.metrics import ssim
from pipeline.qa.networks import Networks
from pipeline.qa.sampling import Chosen, Pixels, SampleKind, Sampler
from pipeline.qa.statistics import ShardStatistics, entropy, psnr
from pipeline.tokens.schema import PartFooter

READ_ROWS = 2000  # at once; 4 MB of tokens at 1,024 per row
WEBP = {"quality": 85, "method": 1}  # 7 ms for 256 pixels; method 4, Pillow's default, 29 ms for a tenth fewer bytes
_COUNTED = ["sample_index", "view", "height", "width"]
_SHAPES = ["grid_height", "grid_width"]
_VIEWS = 256  # of one sample at most: `view` is a uint8
Grid = npt.NDArray[np.int64]
T = TypeVar("T")


class Decoder(Protocol):
    """What gives images for tokens, and lends its device: an engine."""

    def decode(self, indices: Indices, /) -> Images:
        """Images uint8 [n, H, W, 3] of indices [n, h, w]."""
        ...

    def lend(self, work: Callable[[], T], /) -> T:
        """What `work` returns, done on the device."""
        ...


def inspect_shard(
    path: Path, footer: PartFooter, sampler: Sampler, decoder: Decoder, networks: Networks | None = None
) -> Evidence:
    """Look at a finished part.

    Args:
        path: the part on local disk.
        footer: as written into it.
        sampler: has seen every row of it.
        decoder: the engine that made the tokens.
        networks: to compare images with, on the engine's device; None: there are none.
    """
    networks = networks or Networks()
    statistics = ShardStatistics(footer.spec.codebook_size)
    chosen = sampler.chosen()
    grids = _read(path, statistics, chosen)
    # a GPU dies of a wrong index
    samples = [] if statistics.out_of_range else _compare(chosen, grids, decoder, networks)
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
        psnr=_mean([sample.psnr for sample in drawn]),
        ssim=_mean([sample.ssim for sample in drawn]),
        lpips=_mean([sample.lpips for sample in drawn if sample.lpips is not None]),
        not_computed=networks.not_computed,
        weight_files=networks.weight_files,
    )
    return Evidence(report, samples)


def _read(path: Path, statistics: ShardStatistics, chosen: Sequence[Chosen]) -> list[Grid]:
    """Count all rows; returns the stored grids of the chosen ones, in their order."""
    places = {view.sample_index * _VIEWS + view.view: number for number, view in enumerate(chosen)}
    wanted = np.array(list(places), np.int64)
    grids: dict[int, Grid] = {}
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(READ_ROWS, columns=["tokens", *_SHAPES, *_COUNTED]):
            for rows, tokens in _of_one_shape(batch):
                columns = {name: batch.column(name).to_numpy()[rows] for name in _COUNTED}
                statistics.add(tokens, **columns)
                place = columns["sample_index"].astype(np.int64) * _VIEWS + columns["view"]
                for row in np.flatnonzero(np.isin(place, wanted)):
                    grids[places[int(place[row])]] = tokens[row].astype(np.int64)
    assert len(grids) == len(chosen), f"{path}: the part must hold the {len(chosen)} views chosen, got {len(grids)}"
    return [grids[number] for number in range(len(chosen))]


def _of_one_shape(batch: Any) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[Any]]]:
    """Numbers and tokens [n, h, w] of the rows that have a grid of one shape, shape by shape."""
    flat = batch.column("tokens").flatten().to_numpy()
    shapes = np.stack([batch.column(name).to_numpy().astype(np.int64) for name in _SHAPES], axis=1)
    starts = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))])[:-1]
    for height, width in np.unique(shapes, axis=0):
        rows = np.flatnonzero((shapes == (height, width)).all(axis=1))
        if len(rows) == len(shapes):
            yield rows, flat.reshape(-1, height, width)
        else:
            yield rows, flat[starts[rows, None] + np.arange(height * width)].reshape(-1, height, width)


def _compare(
    chosen: Sequence[Chosen], grids: Sequence[Grid], decoder: Decoder, networks: Networks
) -> list[SampleEvidence]:
    """The evidence of the chosen views, in their order."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, grid in enumerate(grids):
        alike[grid.shape].append(number)
    found: dict[int, SampleEvidence] = {}
    for numbers in alike.values():
        views, some = [chosen[number] for number in numbers], np.stack([grids[number] for number in numbers])
        found.update(zip(numbers, _compare_alike(views, some, decoder, networks), strict=True))
    return [found[number] for number in range(len(chosen))]


def _compare_alike(
    chosen: Sequence[Chosen], grids: Indices, decoder: Decoder, networks: Networks
) -> Iterator[SampleEvidence]:
    """Of views of one shape."""
    originals, reconstructions = np.stack([view.pixels for view in chosen]), decoder.decode(grids)
    similarities = ssim(originals, reconstructions)
    distances = decoder.lend(partial(networks.lpips, originals, reconstructions))
    drawn = sum(view.kind == SampleKind.RANDOM for view in chosen)  # they come first
    features = [
        decoder.lend(partial(networks.features, images[:drawn])) + [None] * (len(chosen) - drawn)
        for images in (originals, reconstructions)
    ]
    for number, (view, grid, reconstruction) in enumerate(zip(chosen, grids, reconstructions, strict=True)):
        counts = np.unique(grid, return_counts=True)[1]
        yield SampleEvidence(
            key=view.key,
            sample_index=view.sample_index,
            view=view.view,
            kind=view.kind.value,
            original=_webp(view.pixels),
            reconstruction=_webp(reconstruction),
            psnr=psnr(view.pixels, reconstruction),
            ssim=similarities[number],
            lpips=distances[number],
            entropy=entropy(counts),
            top_code=float(counts.max() / grid.size),
            original_features=features[0][number],
            reconstruction_features=features[1][number],
        )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _webp(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", **WEBP)
    return out.getvalue()
