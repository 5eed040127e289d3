"""Where to train."""

import os
from pathlib import Path
from typing import Final

import torch

from pipeline.errors import UsageError

_CONTAINER: Final = Path("/sys/fs/cgroup/memory.max")  # cgroup v2: bytes, or "max"


def torch_device(name: str) -> torch.device:
    """The device of this name; `auto`: CUDA if there is one, else the CPU.

    Raises:
        UsageError: it is not there, or torch knows no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise UsageError(f"device must be auto or a torch device, got {name!r}") from exc
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device is {name}, but torch finds no CUDA device here")
    return device


def memory_bytes(device: torch.device) -> int:
    """All the memory of a CUDA device; for others that of this machine, or of the container if that is less (bytes)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CONTAINER.read_text().strip() if _CONTAINER.exists() else "max"
    return machine if limit == "max" else min(machine, int(limit))
