"""The idiomatic Ray Data job: read_webdataset -> map -> map_batches(actors that hold the model) -> write_parquet.

    python -m tests.benchmarks.peers.ray_data SHARDS MODEL OUT SIZE ACTORS

Prints one line of JSON.
"""

import json
import os
import sys
import time
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import ray

from tests.benchmarks.peers.common import BATCH, decode, device, encode, load


def pixels_of(row: dict[str, Any], size: int) -> dict[str, Any]:
    """A sample of the tar as key and pixels."""
    return {"key": row["__key__"], "image": decode(row["jpg"], size)}


class Encoder:
    """The model in an actor."""

    def __init__(self, folder: str) -> None:
        self._model = load(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        codes = encode(self._model, batch["image"])
        return {"key": batch["key"], "tokens": codes, "at": np.full(len(codes), time.time())}


def main(shards: str, model: str, out: str, size: int, actors: int) -> None:
    cores = len(os.sched_getaffinity(0))
    # An actor takes a CPU for itself: with as many actors as CPUs no reading could ever begin.
    ray.init(address="local", num_cpus=max(cores, actors + 1), include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    data = ray.data.read_webdataset(shards, decoder=None, file_extensions=["tar"])
    data = data.map(pixels_of, fn_kwargs={"size": size})
    pool = ray.data.ActorPoolStrategy(size=actors)
    gpus = 1 if device() == "cuda" else 0
    data = data.map_batches(
        Encoder, fn_constructor_args=[model], batch_size=BATCH[device()], num_cpus=1, num_gpus=gpus, compute=pool
    )
    data.write_parquet(out)
    end = time.time()
    at = ds.dataset(out).to_table(columns=["at"])["at"].to_numpy()
    steady = (at > at.min()).sum() / (end - at.min())
    print(json.dumps({"rows": len(at), "first": at.min(), "steady": steady}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
