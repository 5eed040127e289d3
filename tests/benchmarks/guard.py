"""How many times as fast we are as the plain way, with a floor below which something has been lost.

Ratios of CPU time within one run: a machine's speed, and who else uses it, cancels out. Each contest takes the best of
several turns, ours and theirs one after the other.
"""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.engine import Engine
from pipeline.errors import Reject
from pipeline.images import ImageConfig, Prepared, prepare
from pipeline.model import VQModel
from pipeline.shards.tar import TarReader
from pipeline.tokens.schema import ColumnsConfig, Counts, PartFooter, Row, TokenSpec
from pipeline.tokens.writer import OutputConfig, PartWriter
from tests.benchmarks.peers.common import decode, encode, load
from tests.shards.tars import archive
from tests.support.commands import ROOT
from tests.support.corpora import jpeg

MODEL = ROOT / "jobs" / "assets" / "vq-f8-1024"
MEMBERS = ("jpg", "txt", "json")
Work = Callable[[], object]


@dataclass(frozen=True)
class Contest:
    """The same work done twice.

    Attributes:
        ours, theirs: do it once.
        floor: ours must be at least so many times as fast; about two thirds of what was measured.
    """

    ours: Work
    theirs: Work
    floor: float


def ratio(contest: Contest, turns: int = 5) -> float:
    """How many times as fast ours is, in CPU time."""
    taken = [(_seconds(contest.ours), _seconds(contest.theirs)) for _ in range(turns)]
    ours, theirs = map(min, zip(*taken, strict=True))
    return theirs / ours


def _seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def tar_walk(samples: int = 400) -> Contest:
    """Our strict reader beside webdataset's, on small samples in memory."""
    data = archive(
        (f"{i:05d}.{kind}", bytes(5000 if kind == "jpg" else 200)) for i in range(samples) for kind in MEMBERS
    )

    def ours() -> int:
        return sum(1 for _ in TarReader(io.BytesIO(data), url="a.tar", size=len(data)))

    def theirs() -> int:
        return sum(1 for _ in group_by_keys(tar_file_expander([{"url": "a.tar", "stream": io.BytesIO(data)}])))

    assert ours() == theirs() == samples
    return Contest(ours, theirs, floor=2.0)


def decoding(images: int = 20) -> Contest:
    """Our checked way from bytes to pixels beside plain Pillow."""
    files, config = [jpeg(seed, 640, 480) for seed in range(images)], ImageConfig(size=256)

    def ours() -> list[Prepared | Reject]:
        return [prepare(file, config) for file in files]

    def theirs() -> list[npt.NDArray[np.uint8]]:
        return [decode(file, config.size) for file in files]

    assert all(np.array_equal(a.views[0].pixels, b) for a, b in zip(ours(), theirs(), strict=True))
    return Contest(ours, theirs, floor=0.7)


@contextmanager
def encoding(size: int = 128) -> Iterator[Contest]:
    """Our engine beside diffusers, both on one thread, and both with the memory that our engine has glibc keep."""
    engine = Engine(VQModel.from_pretrained(MODEL), image_size=size, threads=1)
    images, other = engine.first_batch, load(str(MODEL))
    batch = np.random.default_rng(0).integers(0, 256, (images, size, size, 3), np.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert (engine.encode(batch).reshape(images, -1) == encode(other, batch)).mean() > 0.99
        yield Contest(lambda: engine.encode(batch), lambda: encode(other, batch), floor=0.75)
    finally:
        torch.set_num_threads(threads)
        engine.close()


def writing(folder: Path, rows: int = 1000, batch: int = 50) -> Contest:
    """Our checked writer, fed row by row, beside pyarrow that is given the table whole and checks nothing."""
    spec, footer = (
        TokenSpec(1024, 32, 32),
        PartFooter("f" * 64, {"id": "a"}, TokenSpec(1024, 32, 32), Counts(rows, rows, rows, 0)),
    )
    tokens = np.random.default_rng(0).integers(0, 1024, (rows, 32, 32))
    described = [
        Row(f"{i:09d}", i, 0, 480, 640, (0.0, 0.0, 480.0, 480.0), False, f"caption {i}", None, None)
        for i in range(rows)
    ]

    def ours() -> None:
        with PartWriter(folder / "ours.parquet", spec, ColumnsConfig(), "a.tar", OutputConfig()) as writer:
            for start in range(0, rows, batch):
                writer.add(described[start : start + batch], tokens[start : start + batch])
            writer.finish(footer)

    ours()
    table = pq.read_table(folder / "ours.parquet")
    return Contest(ours, lambda: pq.write_table(table, folder / "theirs.parquet", compression="zstd"), floor=0.37)
