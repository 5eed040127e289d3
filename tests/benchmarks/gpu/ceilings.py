"""What the machine gives: its name, a large matrix product, a large copy; and how all of this is timed."""

import platform
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from tests.benchmarks.gpu.geometries import Scale

ROUNDS = 20
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "exact": torch.float32}
Figures = dict[str, Any]


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, rounds: int = ROUNDS) -> float:
    """Median time of `work` on the device, warmed up; on CUDA by events."""
    for _ in range(3 if device == "cuda" else 1):
        work()
    if device != "cuda":
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


def machine(device: str) -> Figures:
    """What this was measured on."""
    found: Figures = {"python": platform.python_version(), "torch": str(torch.__version__), "device": device}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def ceilings(scale: Scale, device: str) -> Figures:
    """TFLOP/s of a square matrix product by precision, on random numbers, and GB/s of a copy (read and written)."""
    found: Figures = {"matrix": scale.matrix}
    for name, dtype in DTYPES.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        left, right = (torch.randn(scale.matrix, scale.matrix, device=device).to(dtype) for _ in range(2))
        found[name] = 2 * scale.matrix**3 / seconds(lambda a=left, b=right: a @ b, device) / 1e12  # type: ignore[misc]
    source = torch.randint(0, 255, (8 * scale.matrix**2,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy_gb_s"] = 2 * source.nbytes / seconds(lambda: target.copy_(source), device) / 1e9
    return found
