"""What reading for training costs: our dataset beside plain pyarrow and beside Hugging Face `datasets`, in turn.

    python -m tests.benchmarks.readers [ROWS]        200,000 rows of 256 tokens in 20 parts if not given

Everybody reads the tokens alone, in batches of 256 rows, in one process, from the page cache. pyarrow only scans: no
tensors, no shuffling. `datasets` streams the same files, as torch's int64; its shuffled form has a buffer as large as
ours.
"""

import sys
import time
from collections.abc import Callable, Iterator
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.dataset as ds

from pipeline.tokens.dataset import TokenDataset
from pipeline.tokens.order import Sampling
from pipeline.tokens.schema import TokenSpec
from tests.support.token_runs import make_run

SPEC = TokenSpec(16_384, 16, 16)
PARTS, BATCH, BUFFER, ROUNDS = 20, 256, 20_000, 3
DICE = np.random.default_rng(0)

Reader = Callable[[str], Iterator[int]]  # rows of each batch


def skewed(shard: int, sample: int, view: int, spec: TokenSpec) -> np.ndarray:
    """Tokens with code frequencies as skewed as a trained codebook's."""
    return (spec.codebook_size * DICE.random((spec.grid_height, spec.grid_width)) ** 1.2).astype(np.int64)


def pyarrow_scan(run: str) -> Iterator[int]:
    for batch in ds.dataset(f"{run}/tokens").to_batches(columns=["tokens"], batch_size=BATCH):
        yield batch.num_rows


def ours(run: str, *, shuffle: bool) -> Iterator[int]:
    data = TokenDataset(run, Sampling(batch=BATCH, shuffle=shuffle, buffer_rows=BUFFER), columns=[])
    for batch in data:
        yield len(batch["tokens"])


def hugging_face(run: str, *, shuffle: bool) -> Iterator[int]:
    import datasets

    data = datasets.load_dataset("parquet", data_files=f"{run}/tokens/*.parquet", split="train", streaming=True)
    data = data.select_columns(["tokens"]).with_format("torch")
    if shuffle:
        data = data.shuffle(seed=0, buffer_size=BUFFER)
    for batch in data.iter(batch_size=BATCH):
        yield len(batch["tokens"])


READERS: dict[str, Reader] = {
    "pyarrow scan": pyarrow_scan,
    "ours in order": lambda run: ours(run, shuffle=False),
    "ours shuffled": lambda run: ours(run, shuffle=True),
    "datasets in order": lambda run: hugging_face(run, shuffle=False),
    "datasets shuffled": lambda run: hugging_face(run, shuffle=True),
}


def main(rows: int = 200_000) -> None:
    """Print the best of each reader's rounds, and its ratio to pyarrow's; other work on the machine only slows."""
    with TemporaryDirectory() as folder:
        make_run(folder, [rows // PARTS] * PARTS, spec=SPEC, group=2000, tokens=skewed)
        best: dict[str, tuple[float, float]] = {}
        for _ in range(ROUNDS):
            for name, reader in READERS.items():
                wall, cpu = time.perf_counter(), time.process_time()
                given = sum(reader(folder))
                now = time.perf_counter() - wall, time.process_time() - cpu
                assert given == rows // PARTS * PARTS, f"{name} gave {given} rows"
                best[name] = min(now[0], best.get(name, now)[0]), min(now[1], best.get(name, now)[1])
        scan, tokens = best["pyarrow scan"], rows // PARTS * PARTS * SPEC.tokens_per_view / 1e6
        for name, (wall, cpu) in best.items():
            print(
                f"{name:18} {tokens / wall:6.1f} M tokens/s ({scan[0] / wall:.2f} of pyarrow's scan); "
                f"{tokens / cpu:6.1f} M tokens per CPU second ({scan[1] / cpu:.2f})"
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
