"""A VQ model on one device: uint8 images in, indices out, a few fixed batch shapes, nothing waits.

* `submit` hands a batch to the device's lane and returns at once; the caller keeps two or so in flight.
* On CUDA the batch is copied from pinned memory on a stream of its own, normalised on the device, and its indices come
  back asynchronously.
* On a CPU the model runs `CPU_IMAGES` images at a time, whatever the batch: their activations stay in the caches
  (measured: 2 at a time 1.3 to 2.2 times as fast as 32), and tokens do not depend on the batch size at all.
"""

import ctypes
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.encoding import Precision, batch_shapes, padded_size
from pipeline.errors import ModelError
from pipeline.meter import Meter, Part
from pipeline.model import VQModel, denormalise
from pipeline.tokens.schema import TokenSpec

CPU_IMAGES = 2
FIRST_BATCH = {"cuda": 8, "cpu": CPU_IMAGES}
LARGEST_BATCH = 512
RATE_SECONDS = 1.0  # one measurement of a batch size
FLAT = 1.05  # a doubled batch that gains less than 5 percent is not worth its memory

Images = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
T = TypeVar("T")


class Encoding(Protocol):
    """A batch on its way through the device."""

    def indices(self) -> Indices:
        """Wait for the result: [n, h, w]."""
        ...


@dataclass(frozen=True, slots=True)
class _OnCpu:
    result: Indices

    def indices(self) -> Indices:
        return self.result


@dataclass(frozen=True, slots=True)
class _OnCuda:
    host: torch.Tensor
    start: Any
    end: Any
    count: int
    meter: Meter

    def indices(self) -> Indices:
        self.end.synchronize()
        self.meter.spend(Part.ENCODE, self.start.elapsed_time(self.end) / 1e3)
        return self.host[: self.count].numpy()


class Engine:
    """A model on a device, ready for batches of square images.

    Args:
        model: the VQ model; it is moved to the device.
        device: `cpu`, `cuda` or `cuda:N`.
        precision: arithmetic of the encoder.
        image_size: side of the images (pixels), a multiple of the model's downsampling factor.
        batch_size: images per batch; `set_batch_size` changes it.
        meter: counts the device's busy time.
        threads: of the CPU for the model; None leaves torch's own number.
        compiled: run the encoder through torch.compile.

    Raises:
        ModelError: the image size does not fit the model, or the precision does not fit the device.
    """

    def __init__(
        self,
        model: VQModel,
        *,
        device: str = "cpu",
        precision: Precision = Precision.EXACT,
        image_size: int,
        batch_size: int = CPU_IMAGES,
        meter: Meter | None = None,
        threads: int | None = None,
        compiled: bool = False,
    ) -> None:
        if image_size % model.downsample:
            raise ModelError(
                f"image.size must be a multiple of {model.downsample} for this model (f{model.downsample}), "
                f"got {image_size}"
            )
        self.device = torch.device(device)
        if self.device.type == "cpu" and precision is Precision.TF32:
            raise ModelError("precision tf32 needs a CUDA device; use exact on a CPU")
        if self.device.type == "cpu":
            _keep_freed_memory()
        side = image_size // model.downsample
        self.image_size = image_size
        self.spec = TokenSpec(model.codebook_size, side, side)
        self.precision = precision
        self.meter = meter or Meter()
        self._model = model.to(self.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        encode: Callable[[torch.Tensor], torch.Tensor] = self._model.encode_indices
        self._encode = torch.compile(encode) if compiled else encode
        self._lane = ThreadPoolExecutor(1, "device", torch.set_num_threads, (threads or torch.get_num_threads(),))
        self._copy_stream: Any = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.may_halve = True
        self.set_batch_size(batch_size)

    def set_batch_size(self, batch_size: int) -> None:
        """Fix the batch shapes that the device will see from now on."""
        self.batch_size = self._fits = batch_size
        self._shapes = batch_shapes(batch_size)

    def submit(self, images: Images) -> "Future[Encoding]":
        """Start encoding n <= batch_size images [n, size, size, 3]; the images must not be changed meanwhile."""
        return self._lane.submit(self._run_cpu if self._copy_stream is None else self._run_cuda, images)

    def encode(self, images: Images) -> Indices:
        """Indices [n, h, w] of n <= batch_size images."""
        return self.submit(images).result().indices()

    def decode(self, indices: Indices) -> Images:
        """Images uint8 [n, H, W, 3] of indices [n, h, w], for a look at them: in the engine's precision, a few at once.

        The device takes them in turn with the batches; only the caller waits for them.
        """
        return self._lane.submit(self._run_decoder, indices).result().cpu().numpy()

    def lend(self, work: Callable[[], T]) -> T:
        """Have other work done on the device, in turn with the batches; only the caller waits for it."""
        return self._lane.submit(work).result()

    def warm_up(self) -> None:
        """Run every batch shape once: compilation and algorithm choice happen now."""
        for shape in self._shapes:
            self.encode(np.zeros((shape, self.image_size, self.image_size, 3), np.uint8))

    def close(self) -> None:
        """End the device's lane."""
        self._lane.shutdown(wait=True, cancel_futures=True)

    def _run_cpu(self, images: Images) -> Encoding:
        with self.meter.busy(Part.ENCODE):
            chunks = [self._chunk_cpu(images[i : i + CPU_IMAGES]) for i in range(0, len(images), CPU_IMAGES)]
        return _OnCpu(np.concatenate(chunks))

    def _chunk_cpu(self, images: Images) -> Indices:
        batch = torch.from_numpy(_padded(images, CPU_IMAGES))
        with torch.inference_mode(), _arithmetic(self.device, self.precision):
            return self._encode(batch)[: len(images)].numpy()

    def _run_cuda(self, images: Images) -> Encoding:
        count = len(images)
        pinned = torch.from_numpy(_padded(images, padded_size(count, self._shapes))).pin_memory()
        compute = torch.cuda.current_stream(self.device)
        start, end = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._copy_stream):
            batch = pinned.to(self.device, non_blocking=True)
        compute.wait_stream(self._copy_stream)
        batch.record_stream(compute)
        start.record(compute)
        with torch.inference_mode(), _arithmetic(self.device, self.precision):
            indices = self._halving(batch)
            host = torch.empty(indices.shape, dtype=indices.dtype, pin_memory=True)
            host.copy_(indices, non_blocking=True)
        end.record(compute)
        return _OnCuda(host, start, end, count, self.meter)

    def _run_decoder(self, indices: Indices) -> torch.Tensor:
        grids = torch.from_numpy(indices).to(self.device)
        few = min(self._fits, FIRST_BATCH[self.device.type])
        with torch.inference_mode(), _arithmetic(self.device, self.precision):
            return torch.cat([denormalise(self._model.decode_indices(some)) for some in torch.split(grids, few)])

    def _halving(self, batch: torch.Tensor) -> torch.Tensor:
        """Encode a batch; if the device's memory does not suffice, in halves from now on."""
        if len(batch) <= self._fits:
            try:
                return self._encode(batch)
            except torch.OutOfMemoryError:
                if len(batch) == 1 or not self.may_halve:
                    raise
                self._fits = len(batch) // 2
            torch.cuda.empty_cache()
        half = len(batch) // 2
        return torch.cat([self._halving(batch[:half]), self._halving(batch[half:])])


def sweep(engine: Engine, images: Images, batch_size: int | None, seconds: float = 5.0) -> dict[int, float]:
    """Choose and set the batch size (unless given), and measure the model alone on ready batches.

    On CUDA the batch doubles until throughput flattens or memory is short. On a CPU there is nothing to choose.

    Args:
        images: [n, size, size, 3] real images, repeated as needed.
        batch_size: the size to use; None to choose it.
        seconds: after about so long the sweep stops growing.

    Returns:
        Images/s by batch size; the engine is left at the fastest.

    Raises:
        ModelError: not even the smallest batch fits into the device's memory.
    """
    rates: dict[int, float] = {}
    size, deadline = batch_size or FIRST_BATCH[engine.device.type], time.monotonic() + seconds
    engine.may_halve = False  # here memory that is short must show
    while True:
        try:
            rates[size] = _rate(engine, images, size)
        except torch.OutOfMemoryError:
            break
        flat = len(rates) > 1 and rates[size] < FLAT * rates[size // 2]
        if batch_size or flat or engine.device.type == "cpu" or size >= LARGEST_BATCH or time.monotonic() > deadline:
            break
        size *= 2
    engine.may_halve = True
    if not rates:
        raise ModelError(f"batches of {size} images of {engine.image_size} pixels do not fit into the device's memory")
    engine.set_batch_size(max(rates, key=lambda candidate: rates[candidate]))
    return rates


def agreement(engine: Engine, images: Images) -> float:
    """The fraction of the tokens of `images` that equal those of precision `exact`."""
    if engine.precision is Precision.EXACT:
        return 1.0
    own, tokens = engine.precision, _encode_all(engine, images)
    engine.precision = Precision.EXACT
    try:
        return float((_encode_all(engine, images) == tokens).mean())
    finally:
        engine.precision = own


def token_agreement(engine: Engine, images: Images, others: Images) -> float:
    """The fraction of the tokens of `images` that equal those of `others`, the same images made in another way."""
    return float((_encode_all(engine, images) == _encode_all(engine, others)).mean())


def _encode_all(engine: Engine, images: Images) -> Indices:
    size = engine.batch_size
    return np.concatenate([engine.encode(images[i : i + size]) for i in range(0, len(images), size)])


def _rate(engine: Engine, images: Images, size: int) -> float:
    """Images/s on ready batches, the next one always submitted before the last one is waited for."""
    engine.set_batch_size(size)
    batch = np.resize(images, (size, *images.shape[1:]))
    engine.encode(batch)  # warm up: allocations, algorithm choice, compilation
    start, done, ahead = time.perf_counter(), 0, [engine.submit(batch)]
    while done < 2 * size or time.perf_counter() - start < RATE_SECONDS:
        ahead.append(engine.submit(batch))
        ahead.pop(0).result().indices()
        done += size
    rate = done / (time.perf_counter() - start)
    ahead.pop().result().indices()
    return rate


def _padded(images: Images, size: int) -> Images:
    if len(images) == size:
        return images
    padded = np.zeros((size, *images.shape[1:]), np.uint8)
    padded[: len(images)] = images
    return padded


def _arithmetic(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    if device.type == "cuda":
        arithmetic = "ieee" if precision is Precision.EXACT else "tf32"
        torch.backends.cuda.matmul.fp32_precision = arithmetic
        torch.backends.cudnn.conv.fp32_precision = arithmetic  # type: ignore[attr-defined]
    if precision in (Precision.BF16, Precision.FP16):
        return torch.autocast(device.type, torch.bfloat16 if precision is Precision.BF16 else torch.float16)
    return nullcontext()


def _keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning them to the kernel after every layer.

    Every activation above 32 MiB would otherwise be mapped, and faulted in page by page, anew (measured: 17 to 36
    percent of the encoder's time). Other C libraries have no such call, and no such habit.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 1 << 30)
