"""What is measured before the first shard: which precision keeps the tokens, and which batch size is fastest."""

import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import torch

from pipeline.encoding import Precision, Trial
from pipeline.engine.engine import Engine, Images, Indices
from pipeline.errors import ModelError

LARGEST_BATCH = 512
TRIAL_BATCH = 32  # images; large enough that a GPU shows which precision is faster
RATE_SECONDS = 1.0  # one measurement of a batch size
FLAT = 1.05  # a doubled batch that gains less than 5 percent is not worth its memory


def try_precisions(engine: Engine, images: Images, precisions: Iterable[Precision]) -> list[Trial]:
    """Measure how many tokens each precision keeps, and how fast it is; the engine is left at the last one.

    Args:
        engine: on the device.
        images: [n, size, size, 3] real images.
        precisions: what to try. With `exact` alone nothing needs to be compared, nor measured before the sweep.

    Raises:
        ModelError: the device does not have one of the precisions.
    """
    precisions = list(precisions)
    if precisions == [Precision.EXACT]:
        engine.set_precision(Precision.EXACT)
        return [Trial(Precision.EXACT, agreement=1.0, rate=0.0)]
    engine.set_batch_size(TRIAL_BATCH if engine.device.type == "cuda" else engine.first_batch)
    engine.set_precision(Precision.EXACT)
    exact = _encode_all(engine, images)
    return [_try(engine, images, precision, exact) for precision in precisions]


def _try(engine: Engine, images: Images, precision: Precision, exact: Indices) -> Trial:
    engine.set_precision(precision)
    before = engine.overflowed
    agreement = float((_encode_all(engine, images) == exact).mean())
    overflowed = engine.overflowed - before
    return Trial(precision, agreement, measure_rate(engine, images, engine.batch_size), overflowed)


def agreement(engine: Engine, images: Images) -> float:
    """The fraction of the tokens of `images` that equal those of precision `exact`."""
    own = engine.precision
    if own is Precision.EXACT:
        return 1.0
    tokens = _encode_all(engine, images)
    engine.set_precision(Precision.EXACT)
    try:
        return float((_encode_all(engine, images) == tokens).mean())
    finally:
        engine.set_precision(own)


def token_agreement(engine: Engine, images: Images, others: Images) -> float:
    """The fraction of the tokens of `images` that equal those of `others`, the same images made in another way."""
    return float((_encode_all(engine, images) == _encode_all(engine, others)).mean())


def sweep(engine: Engine, images: Images, batch_size: int | None, seconds: float = 5.0) -> dict[int, float]:
    """Choose and set the batch size (unless given), and measure the model alone on ready batches.

    On CUDA the batch doubles until throughput flattens or memory is short. On a CPU there is nothing to choose.

    Args:
        engine: on the device.
        images: [n, size, size, 3] real images, repeated as needed.
        batch_size: the size to use; None to choose it.
        seconds: after about so long the sweep stops growing.

    Returns:
        Images/s by batch size; the engine is left at the fastest.

    Raises:
        ModelError: not even the smallest batch fits into the device's memory.
    """
    rates: dict[int, float] = {}
    size, deadline = batch_size or engine.first_batch, time.monotonic() + seconds
    engine.may_halve(False)  # here memory that is short must show
    while True:
        try:
            rate = measure_rate(engine, images, size)
            if engine.device.type == "cuda":
                engine.try_beside(images[:1])
            rates[size] = rate
        except torch.OutOfMemoryError:
            break
        flat = len(rates) > 1 and rates[size] < FLAT * rates[size // 2]
        if batch_size or flat or engine.device.type == "cpu" or size >= LARGEST_BATCH or time.monotonic() > deadline:
            break
        size *= 2
    engine.may_halve(True)
    if not rates:
        raise ModelError(f"batches of {size} images of {engine.image_size} pixels do not fit into the device's memory")
    engine.set_batch_size(max(rates, key=lambda candidate: rates[candidate]))
    return rates


class BatchSizes:
    """The batch sizes that earlier sweeps of this user chose, by kind of device and model: a sweep is made once.

    A file in the user's cache folder; losing it costs a sweep.

    Args:
        folder: where it lies; None for the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self._path = (folder or Path(cache) / "tokenmill") / "batch_sizes.json"

    def get(self, circumstances: Iterable[object]) -> int | None:
        """The size chosen under these circumstances (device, model, precision, ...), None if unknown."""
        size = self._read().get(_key(circumstances))
        return size if isinstance(size, int) and size > 0 else None

    def put(self, size: int, circumstances: Iterable[object]) -> None:
        """Remember a size; a folder that cannot be written is none to remember in."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump({**self._read(), _key(circumstances): size}, file, indent=2)
            Path(file.name).replace(self._path)  # in one step: other actors read and write it too

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _key(circumstances: Iterable[object]) -> str:
    return " | ".join(map(str, circumstances))


def _encode_all(engine: Engine, images: Images) -> Indices:
    size = engine.batch_size
    return np.concatenate([engine.encode(images[i : i + size]) for i in range(0, len(images), size)])


def measure_rate(engine: Engine, images: Images, size: int, seconds: float | None = None) -> float:
    """Images/s on ready batches, the next one always submitted before the last one is waited for.

    Args:
        engine: on the device; it is left at this batch size.
        images: [n, size, size, 3], repeated as needed.
        size: images per batch.
        seconds: at least so long; None for `RATE_SECONDS`.

    Raises:
        torch.OutOfMemoryError: the batch does not fit, and must not be halved.
    """
    seconds = RATE_SECONDS if seconds is None else seconds
    engine.set_batch_size(size)
    batch = np.resize(images, (size, *images.shape[1:]))
    engine.encode(batch)  # warm up: allocations, algorithm choice, compilation
    start, done, ahead = time.perf_counter(), 0, [engine.submit(batch)]
    while done < 2 * size or time.perf_counter() - start < seconds:
        ahead.append(engine.submit(batch))
        ahead.pop(0).result().indices()
        done += size
    rate = done / (time.perf_counter() - start)
    ahead.pop().result().indices()
    return rate
