"""Triton kernels for what the encoder does beside its convolutions. Each has a plain torch twin that tests hold it to.

The other modules of this room import Triton, so they are imported only where a kernel runs: see `kernels_run_on`.
"""

from functools import cache
from importlib.util import find_spec

import torch

__all__ = ["kernels_run_on"]


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def kernels_run_on(tensor: torch.Tensor) -> bool:
    """Whether the kernels take this tensor.

    It must lie on a CUDA device of a machine with Triton; gradients must be off, as kernels have no backward pass; and
    torch.compile must not be tracing, as it fuses the plain twins by itself.
    """
    return tensor.is_cuda and not torch.compiler.is_compiling() and not torch.is_grad_enabled() and _has_triton()
