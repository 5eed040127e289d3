"""Batches on a CUDA device: copied, encoded and fetched without anybody waiting, in buffers that are made once.

    caller's images -> pinned (host) -> staged (device) -> the program's input -> program -> results -> pinned (host)
                       |- a slot's, on the copy stream -|- on the compute stream ------------------|

A slot carries one batch. It is used again only after its last results were taken out, which is after all copies from
and to its buffers. A program is one batch shape: tensors that never move, and a CUDA graph that reads and writes them,
so that a batch costs one launch and hardly ever the interpreter's lock, for which the decode threads queue.
Everything here but `Started.result` is called by the engine's lane, one thread.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encoding import padded_size
from pipeline.engine.forward import Forward
from pipeline.meter import Meter, Part

SLOTS = 3  # one on the device, one being copied, one being filled

Result = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]
Work = Callable[[], object]


def numbered(device: torch.device) -> torch.device:
    """A device with its number, CUDA's current one if it has none: `torch.cuda.set_device` takes no other."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


class Gpu:
    """The few things that are asked of CUDA. Tests put a scheduler in its place that delays all it may delay.

    Attributes:
        compute: the stream that kernels run on; the lane's current stream.
        copies: the stream of copies to the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.compute: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.copies: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def enter(self) -> None:
        """Make this thread the lane: what it launches from now on goes to the compute stream."""
        torch.cuda.set_device(self.device)
        torch.cuda.set_stream(self.compute)

    def event(self) -> Any:
        """An event that can be waited for without burning a core, and tells the time."""
        return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor in host memory that the device can reach while we do something else."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor on the device."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def copy(self, target: Tensor, source: Tensor, stream: Any) -> None:
        """Have `stream` copy; returns at once."""
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    def launch(self, work: Work) -> None:
        """Put work onto the compute stream."""
        work()

    def capture(self, work: Work) -> Work:
        """Record work that ran before; calling the result replays it. Another thread's waiting does not disturb it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.compute, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def synchronize(self) -> None:
        """Wait until all streams are done."""
        torch.cuda.synchronize(self.device)

    def free_memory(self) -> None:
        """Give freed blocks back to the device."""
        self.synchronize()
        torch.cuda.empty_cache()


class Started:
    """A batch on its way."""

    def __init__(self, slot: "_Slot", count: int, meter: Meter) -> None:
        self._slot, self._count, self._meter = slot, count, meter
        self._lock = threading.Lock()
        self._result: Result | None = None

    def result(self) -> Result:
        """Wait for indices [n, h, w] and, for each image, whether its latents were finite: copies, the caller's own.

        The slot is free afterwards, whoever called: the lane does before it uses the slot again, as a caller may have
        lost interest.
        """
        with self._lock:
            if self._result is None:
                slot, count = self._slot, self._count
                slot.end.synchronize()
                self._meter.spend(Part.ENCODE, slot.start.elapsed_time(slot.end) / 1e3)
                self._result = slot.indices[:count].numpy().copy(), slot.finite[:count].numpy().copy()
            return self._result


@dataclass(slots=True)
class _Slot:
    """The buffers of one batch. All but `staged` are pinned host memory."""

    pinned: Tensor
    staged: Tensor
    indices: Tensor
    finite: Tensor
    copied: Any
    start: Any
    end: Any
    last: Started | None = None


@dataclass(frozen=True, slots=True)
class _Program:
    """One batch shape on the device: `run` reads `images` and writes `indices` and `finite`."""

    images: Tensor
    indices: Tensor
    finite: Tensor
    run: Work


class CudaLine:
    """Encodes batches of a few fixed shapes.

    Args:
        gpu: the device.
        image: shape of one image.
        grid: height and width of its indices.
        meter: counts the device's busy time.
        graphs: replay CUDA graphs, instead of launching kernel by kernel.
    """

    def __init__(
        self, gpu: Gpu, image: tuple[int, int, int], grid: tuple[int, int], meter: Meter, *, graphs: bool
    ) -> None:
        self._gpu, self._image, self._grid, self._meter, self._graphs = gpu, image, grid, meter, graphs
        self._slots: deque[_Slot] = deque()
        self._programs: dict[int, _Program] = {}
        self._forward: Forward | None = None
        self._shapes: tuple[int, ...] = ()
        self._fits = 0
        self._capturing = False
        self.may_halve = True

    def prepare(self, forward: Forward, shapes: tuple[int, ...]) -> None:
        """Run `forward` on batches of these sizes from now on; buffers are made here, programs when first needed."""
        for slot in self._slots:
            if slot.last is not None:
                slot.last.result()
        self._slots.clear()
        self._programs.clear()
        self._gpu.free_memory()
        self._forward, self._shapes, self._fits = forward, shapes, shapes[-1]
        self._slots.extend(self._slot(shapes[-1]) for _ in range(SLOTS))
        self._gpu.synchronize()  # the copy stream may get memory that the compute stream still worked in when freed

    def start(self, images: npt.NDArray[np.uint8]) -> Started:
        """Start on n images [n, H, W, C]; they are copied before this returns."""
        gpu, slot, count = self._gpu, self._slots[0], len(images)
        self._slots.rotate(-1)
        if slot.last is not None:
            slot.last.result()
        size = padded_size(count, self._shapes)
        program = self._programs.get(size) or self._build(size)
        slot.pinned[:count].copy_(torch.from_numpy(images))
        slot.pinned[count:size].zero_()
        gpu.copy(slot.staged[:size], slot.pinned[:size], gpu.copies)
        slot.copied.record(gpu.copies)
        gpu.compute.wait_event(slot.copied)
        slot.start.record(gpu.compute)
        gpu.copy(program.images, slot.staged[:size], gpu.compute)
        gpu.launch(program.run)
        gpu.copy(slot.indices[:size], program.indices, gpu.compute)
        gpu.copy(slot.finite[:size], program.finite, gpu.compute)
        slot.end.record(gpu.compute)
        slot.last = Started(slot, count, self._meter)
        return slot.last

    def _slot(self, size: int) -> _Slot:
        gpu, pixels, grid = self._gpu, (size, *self._image), (size, *self._grid)
        return _Slot(
            pinned=gpu.pinned(pixels, torch.uint8),
            staged=gpu.buffer(pixels, torch.uint8),
            indices=gpu.pinned(grid, torch.int64),
            finite=gpu.pinned((size,), torch.bool),
            copied=gpu.event(),
            start=gpu.event(),
            end=gpu.event(),
        )

    def _build(self, size: int) -> _Program:
        """The program of one batch size: warmed up, so that algorithms are chosen and kernels loaded, then captured."""
        gpu = self._gpu
        images = gpu.buffer((size, *self._image), torch.uint8).zero_()
        indices, finite = gpu.buffer((size, *self._grid), torch.int64), gpu.buffer((size,), torch.bool)

        def run() -> None:
            found, held = self._halving(images)
            indices.copy_(found)
            finite.copy_(held)

        replay: Work | None = None if self._graphs else run
        while replay is None:
            run()
            gpu.synchronize()
            try:
                self._capturing = True
                replay = gpu.capture(run)
            except torch.OutOfMemoryError:  # a graph keeps its memory, beside what the warm-up needed
                if not self._halve(size):
                    raise
            finally:
                self._capturing = False
            gpu.free_memory()
        program = self._programs[size] = _Program(images, indices, finite, replay)
        return program

    def _halving(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a batch; if the device's memory does not suffice, in halves from now on."""
        assert self._forward is not None, "prepare() comes first"
        if len(batch) <= self._fits:
            try:
                return self._forward(batch)
            except torch.OutOfMemoryError:
                if self._capturing or not self._halve(len(batch)):  # capturing: `_build` halves, and captures anew
                    raise
            self._gpu.free_memory()  # not before the error is gone: its frames hold what did not fit
        half = len(batch) // 2
        (first, held), (second, held_too) = self._halving(batch[:half]), self._halving(batch[half:])
        return torch.cat([first, second]), torch.cat([held, held_too])

    def _halve(self, size: int) -> bool:
        """From now on batches of `size` are too large; False if they must not, or cannot, be halved.

        It is not given the error: one that a frame of its own traceback holds would keep what did not fit.
        """
        size = min(size, self._fits)
        if size == 1 or not self.may_halve:
            return False
        self._fits = size // 2
        return True
