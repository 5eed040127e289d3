"""I6: memory does not grow with the shard."""

import io
import multiprocessing
import tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import tokenize_shard as heart
from pipeline.shards.manifest import freeze
from pipeline.storage import Storage
from pipeline.tokens.writer import OutputConfig
from tests.chaos.ground import FULL
from tests.chaos.poison import with_comment
from tests.support.corpora import jpeg
from tests.support.lines import production_line
from tests.support.memory import peak_bytes

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
SAMPLE_BYTES = 60_000
MEMBER_BYTES = 512 + -(-SAMPLE_BYTES // 512) * 512  # a header and whole blocks
SLACK = 128 << 20  # bytes: what allocators keep for themselves until they have seen enough to be in balance
# (budget for samples between tar and device, size of the small shard), in bytes; the large one is ten times as large
CASES = [(16 << 20, 24_000_000), *([(heart.DECODE_BUDGET, 60_000_000)] if FULL else [])]


@pytest.mark.parametrize(("budget", "small"), CASES)
def test_peak_of_a_shard_ten_times_as_large(
    tmp_path: Path, tiny_model: Path, fired: Counter[str], budget: int, small: int
) -> None:
    peaks = [measure_apart(tmp_path, size, tiny_model, budget) for size in (small, 10 * small)]
    fired[f"peaks of {peaks[0] >> 20} and {peaks[1] >> 20} MB for {small // 10**6} and {small // 10**5} MB"] += 1
    assert peaks[1] - peaks[0] < budget + SLACK < 9 * small


def measure_apart(folder: Path, size: int, model: Path, budget: int) -> int:
    """`measure` in a new process."""
    shard = write_large_shard(folder / f"{size}.tar", size)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        peak = pool.submit(measure, shard, model, folder / "out", budget).result()
    shard.unlink()
    return peak


def measure(path: Path, model: Path, output: Path, budget: int) -> int:
    """Tokenize a shard; the peak of this process's resident memory (bytes)."""
    torch.set_num_threads(1)
    (shard,) = freeze(Storage(), [str(path)])
    with production_line(model, str(output), batch_size=8) as line:
        report = heart.tokenize_shard(shard, replace(line, output=OutputConfig(url=str(output)), decode_budget=budget))
    assert report.counts.rows == shard.size // MEMBER_BYTES
    return peak_bytes()


def write_large_shard(path: Path, size: int) -> Path:
    """A shard of about `size` bytes: a few small JPEGs, again and again, each with a long comment."""
    plain = [jpeg(seed, 48, 40) for seed in range(16)]
    images = [with_comment(image, b" " * (SAMPLE_BYTES - len(image) - 4)) for image in plain]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(size // MEMBER_BYTES):
            info = tarfile.TarInfo(f"{index:08d}.jpg")
            info.size = SAMPLE_BYTES
            tar.addfile(info, io.BytesIO(images[index % len(images)]))
    return path
