"""Where to train."""

import torch

from pipeline.errors import UsageError


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
