"""Batches on a CPU: one lane per core, each encoding a few images at a time by itself.

No thread waits for another within a batch. Those of OpenMP would after every layer, and spin meanwhile: beside decode
threads and other processes they took twice the CPU time for the same work. How many images a lane takes at once depends
on their size alone, so tokens depend neither on the batch size nor on the number of cores.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

AT_ONCE_PIXELS = 256 * 256  # more of them take more memory, and no less time (many more: they leave the caches)
AT_ONCE_MOST = 16  # images, however small: what is missing at the end of a batch is computed for nothing

Images = npt.NDArray[np.uint8]
Result = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]


def images_at_once(size: int) -> int:
    """How many images of `size` x `size` pixels a core encodes at a time."""
    return min(AT_ONCE_MOST, max(1, AT_ONCE_PIXELS // (size * size)))


def cpu_lanes(cores: int) -> ThreadPoolExecutor:
    """Threads that each compute alone."""
    _keep_freed_memory()
    return ThreadPoolExecutor(cores, "device", torch.set_num_threads, (1,))


@dataclass(frozen=True, slots=True)
class Pieces:
    """A batch in pieces, on several lanes."""

    pieces: list[Future[Result]]

    def result(self) -> Result:
        """Wait for all of them."""
        found = [piece.result() for piece in self.pieces]
        return np.concatenate([indices for indices, _ in found]), np.concatenate([held for _, held in found])


def in_pieces(lanes: ThreadPoolExecutor, encode: Callable[[Images], Result], images: Images, at_once: int) -> Pieces:
    """Have the lanes encode a batch; `encode` gets at most `at_once` images at a time."""
    return Pieces([lanes.submit(encode, images[i : i + at_once]) for i in range(0, len(images), at_once)])


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
