"""The pictures of the report: original, reconstruction and difference, within a budget of bytes."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from pipeline.errors import TokenmillError
from pipeline.qa.evidence import DAMAGE
from pipeline.qa.report.pairs import pairs
from pipeline.qa.report.records import Sample, read_pictures
from pipeline.qa.report.run import Run
from pipeline.storage import Storage
from pipeline.urls import join

RANDOM, WORST, UNUSUAL, ACCUSED, DIVIDED = 32, 32, 16, 16, 16  # exhibits of each kind at most
MAX_BYTES = 5 << 20  # of all pictures, as base64
GAIN = 4  # by which differences are amplified
DIFFERENCE_QUALITY = 50  # WebP; the eye looks for where, not for how much
READ_THREADS = 16
MAX_PIXELS = 1 << 24  # of one picture

WebP = bytes
Fetched = dict[str, list[tuple[WebP, WebP]] | None]  # by shard; None: its evidence cannot be read


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, with its place in the page's words."""

    label: str
    alt: str
    source: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One view: its pictures, and what was measured (one sample for each run)."""

    samples: tuple[Sample, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Gallery:
    """Some exhibits under one heading.

    Attributes:
        wanted: how many there would be with more room; `len(exhibits)` if none was left out.
    """

    name: str
    title: str
    meaning: str
    exhibits: tuple[Exhibit, ...]
    wanted: int


@dataclass
class _Plan:
    """A gallery to be: which views, one of each run."""

    name: str
    title: str
    meaning: str
    chosen: Sequence[tuple[Sample, ...]]
    exhibits: list[Exhibit] = field(default_factory=list)


def galleries(storage: Storage, runs: Sequence[Run], names: Sequence[str]) -> list[Gallery]:
    """The galleries of one run, or of two side by side.

    Args:
        runs: one or two.
        names: what the runs are called in captions.
    """
    plans = [plan for plan in (_alone(runs[0]) if len(runs) == 1 else _together(runs[0], runs[1])) if plan.chosen]
    fetched = [
        _fetch(storage, run, (group[i] for plan in plans for group in plan.chosen)) for i, run in enumerate(runs)
    ]
    left = MAX_BYTES
    for number, plan in enumerate(plans):
        room = left // (len(plans) - number)
        for samples in plan.chosen:
            exhibit = _exhibit(samples, fetched, names)
            if exhibit is None:
                continue
            size = sum(len(picture.source) for picture in exhibit.pictures)
            if size > room:
                break
            room, left = room - size, left - size
            plan.exhibits.append(exhibit)
    return [Gallery(p.name, p.title, p.meaning, tuple(p.exhibits), len(p.chosen)) for p in plans if p.exhibits]


# --- which -----------------------------------------------------------------------------------------------------------


def _alone(run: Run) -> Iterator[_Plan]:
    views = [view for record in run.records for view in record.views]
    of_accused = sorted((view for view in views if view.shard in run.accused), key=_badness)
    yield _Plan("accused", "In shards that a gate accuses", "lowest PSNR first", _singly(of_accused[:ACCUSED]))
    random = _spread_out([view for view in views if view.kind == "random"])
    yield _Plan("random", "Random", "chosen by the hash of their keys: what to expect", _singly(random[:RANDOM]))
    worst = sorted(views, key=_badness)
    yield _Plan("worst", "Worst", "lowest PSNR of all that were decoded", _singly(worst[:WORST]))
    unusual = _spread_out([view for view in views if view.kind == "unusual"])
    meaning = "grids of the most surprising codes of their shards"
    yield _Plan("unusual", "Unusual", meaning, _singly(unusual[:UNUSUAL]))


def _together(first: Run, second: Run) -> Iterator[_Plan]:
    both = pairs(first, second)
    gain = sorted(both, key=lambda pair: pair[1].psnr - pair[0].psnr)
    random = [pair for pair in both if pair[0].kind == "random"]
    by_shard = {id(pair[0]): pair for pair in random}
    spread = [by_shard[id(view)] for view in _spread_out([pair[0] for pair in random])]
    yield _Plan("random", "Random", "chosen by the hash of their keys: what to expect", spread[:RANDOM])
    worse = [pair for pair in gain if pair[1].psnr < pair[0].psnr][:DIVIDED]
    yield _Plan("a-better", "Better in A", "PSNR furthest ahead in A", worse)
    better = [pair for pair in reversed(gain) if pair[1].psnr > pair[0].psnr][:DIVIDED]
    yield _Plan("b-better", "Better in B", "PSNR furthest ahead in B", better)


def _badness(view: Sample) -> tuple[float, str, int]:
    return view.psnr, view.shard, view.row


def _singly(views: Iterable[Sample]) -> list[tuple[Sample, ...]]:
    return [(view,) for view in views]


def _spread_out(views: Sequence[Sample]) -> list[Sample]:
    """The first view of every shard, then the second of every shard, and so on."""
    turn: dict[str, int] = {}
    turns = []
    for view in views:
        turn[view.shard] = turn.get(view.shard, -1) + 1
        turns.append(turn[view.shard])
    return [view for _, view in sorted(zip(turns, views, strict=True), key=lambda pair: pair[0])]


# --- their bytes -----------------------------------------------------------------------------------------------------


def _fetch(storage: Storage, run: Run, samples: Iterable[Sample]) -> Fetched:
    """The pictures of the shards that `samples` are of."""
    wanted = sorted({sample.shard for sample in samples})

    def read(shard: str) -> list[tuple[WebP, WebP]] | None:
        try:
            return read_pictures(storage, join(run.url, "qa", f"{shard}.parquet"))
        except (TokenmillError, *DAMAGE):  # its numbers could be read: the exhibits are fewer, and the page says so
            return None

    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="report") as pool:
        return dict(zip(wanted, pool.map(read, wanted), strict=True))


def _exhibit(samples: tuple[Sample, ...], fetched: Sequence[Fetched], names: Sequence[str]) -> Exhibit | None:
    """The pictures of one view, None if they cannot be had; an original that all runs saw is shown once."""
    pictures: list[Picture] = []
    shown: set[WebP] = set()
    for sample, store, name in zip(samples, fetched, names, strict=True):
        stored = store.get(sample.shard)
        if stored is None or sample.row >= len(stored):
            return None
        original, reconstruction = stored[sample.row]
        suffix = f" {name}" if name else ""
        try:
            difference = _difference(original, reconstruction)
            if original not in shown:
                pictures.append(_picture(f"original{suffix if shown else ''}", sample, original))
                shown.add(original)
            pictures.append(_picture(f"reconstruction{suffix}", sample, reconstruction))
            pictures.append(_picture(f"difference{suffix}", sample, difference))
        except DAMAGE:
            return None
    return Exhibit(samples, tuple(pictures))


def _picture(label: str, sample: Sample, data: WebP) -> Picture:
    with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
        width, height = image.size
    source = "data:image/webp;base64," + base64.b64encode(data).decode()
    return Picture(label, f"{label} of {sample.key}", source, width, height)


def _difference(original: WebP, reconstruction: WebP) -> WebP:
    """|original - reconstruction| of each channel, amplified."""
    a, b = (_pixels(data) for data in (original, reconstruction))
    if a.shape != b.shape:
        raise ValueError(f"original and reconstruction must be of one size, got {a.shape} and {b.shape}")
    image = Image.fromarray(np.clip(np.abs(a - b) * GAIN, 0, 255).astype(np.uint8))
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=DIFFERENCE_QUALITY)
    return sink.getvalue()


def _pixels(data: WebP) -> "np.ndarray[tuple[int, ...], np.dtype[np.int16]]":
    with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"a picture must have at most {MAX_PIXELS} pixels, got {image.size}")
        return np.asarray(image.convert("RGB"), np.int16)
