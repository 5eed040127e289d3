"""The plain script: a webdataset DataLoader whose workers decode, a loop that encodes and writes.

    python -m tests.benchmarks.peers.script SHARDS MODEL OUT SIZE WORKERS [tricks]

What most tokenizer repositories ship, with WebDataset in and Parquet out; with `tricks` what the best of them do.
Prints one line of JSON.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from torch.utils.data import DataLoader

from tests.benchmarks.peers.common import BATCH, decode, device, encode, load

Sample = tuple[str, npt.NDArray[np.uint8]]


class Decode:
    """A sample of the tar as (key, pixels)."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, sample: dict[str, bytes]) -> Sample:
        return sample["__key__"], decode(sample["jpg"], self._size)  # type: ignore[return-value]


def as_it_is(batch: list[Sample]) -> list[Sample]:
    """Leaves batching to the loop."""
    return batch


def main(shards: str, model_folder: str, out: str, size: int, workers: int, *, tricks: bool) -> None:
    urls = sorted(str(path) for path in Path(shards).glob("*.tar"))
    data = wds.WebDataset(urls, shardshuffle=False, empty_check=False).map(Decode(size))
    loader = DataLoader(data, batch_size=BATCH[device()], num_workers=workers, collate_fn=as_it_is)
    model = load(model_folder, tricks=tricks)
    Path(out).mkdir(parents=True)
    writer, first, rows, first_rows = None, 0.0, 0, 0
    for batch in loader:
        codes = encode(model, np.stack([pixels for _, pixels in batch]))
        rows += len(batch)
        if not first:
            first, first_rows = time.time(), len(batch)
        columns = {
            "key": [key for key, _ in batch],
            "tokens": pa.FixedSizeListArray.from_arrays(codes.reshape(-1), codes.shape[1]),
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(f"{out}/part-0.parquet", table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None, f"{shards}: no samples"
    writer.close()
    steady = (rows - first_rows) / (time.time() - first)
    print(json.dumps({"rows": rows, "first": first, "steady": steady}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:6]), tricks="tricks" in sys.argv[6:])
