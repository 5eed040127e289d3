"""Triton kernels for what the encoder does beside its convolutions. Each has a plain torch twin that tests hold it to.

The other modules of this room import Triton, so they are imported only where a kernel runs: see `kernels_run_on`.
"""

from functools import cache
from importlib.util import find_spec

import torch

from pipeline.errors import ModelError

__all__ = ["kernels_run_on", "try_kernels"]


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def kernels_run_on(tensor: torch.Tensor) -> bool:
    """Whether the kernels take this tensor.

    It must lie on a CUDA device of a machine with Triton; gradients must be off, as kernels have no backward pass; and
    torch.compile must not be tracing, as it fuses the plain twins by itself.
    """
    return tensor.is_cuda and not torch.compiler.is_compiling() and not torch.is_grad_enabled() and _has_triton()


def try_kernels(device: torch.device) -> None:
    """Build and run a kernel, where there is Triton: it compiles its driver when the first one is launched.

    Raises:
        ModelError: it cannot. The plain twins do not step in: their last bits differ, and so would actors' tokens.
    """
    if not _has_triton():
        return
    from pipeline.kernels.nearest import nearest_codes_fused

    vectors = torch.eye(4, device=device)
    try:
        found = nearest_codes_fused(vectors, vectors).tolist()
    except Exception as error:
        raise ModelError(
            "Triton cannot build its kernels on this machine; it needs a C compiler and Python's headers (on Debian: "
            f"gcc, python3-dev), and a GPU that it knows: {type(error).__name__}: {error}"
        ) from error
    if found != [0, 1, 2, 3]:
        raise ModelError(f"Triton's kernels are wrong on this machine: codes 0 to 3 were found as {found}")
