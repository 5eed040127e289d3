"""The codebook: nearest-code search and the straight-through estimator (van den Oord et al. 2017, 1711.00937)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.kernels import kernels_run_on

# Bytes of one chunk's distances. On a CPU the chunk should stay in the second-level cache: that halved the time at
# 8,192 codes. On an accelerator it bounds memory and costs few launches.
_CPU_CHUNK_BYTES = 2 << 20
_DEVICE_CHUNK_BYTES = 256 << 20
_FLOAT32_BYTES = 4
FULL = ("ieee", "none")  # "none" where nobody has asked for less

# diffusers weighs the codebook's term by beta, not the encoder's; its checkpoints' losses are reported that way.
_LEGACY_BETA = 0.25


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Switches reduced-precision float32 products (TF32, bf16) off: in bf16 up to a third of the codes would change.

    The switch is process-wide: where it has to be turned, one thread at a time should launch work on a device.
    """
    library: Any = {"cuda": torch.backends.cuda, "cpu": torch.backends.mkldnn}.get(device.type)
    if library is None or library.matmul.fp32_precision in FULL:
        yield
        return
    backend = library.matmul
    saved = backend.fp32_precision
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = saved


def nearest_codes(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index of the nearest code of each vector, by squared Euclidean distance.

    Computes argmin over e of |e|^2/2 - z.e, which orders codes as |z - e|^2 does: on CUDA in one kernel, elsewhere in
    chunks of rows.

    Args:
        vectors: [N, D], any floating dtype.
        codes: [K, D], any floating dtype, on the same device.

    Returns:
        int64 [N] in [0, K). Distances are float32 whatever the inputs, autocast and TF32 settings are; ties go to the
        lowest index.
    """
    with torch.no_grad():
        if kernels_run_on(vectors):
            from pipeline.kernels.nearest import nearest_codes_fused

            return nearest_codes_fused(vectors, codes)
        return nearest_codes_plain(vectors, codes)


def nearest_codes_plain(vectors: Tensor, codes: Tensor) -> Tensor:
    """The same by a matrix product in chunks of rows: the twin that the kernel is held to."""
    chunk_bytes = _CPU_CHUNK_BYTES if vectors.device.type == "cpu" else _DEVICE_CHUNK_BYTES
    rows = max(64, chunk_bytes // (_FLOAT32_BYTES * len(codes)))
    with torch.autocast(vectors.device.type, enabled=False), full_float32(vectors.device):
        vectors, codes = vectors.float(), codes.float()
        half_norms = codes.square().sum(dim=1).div_(2)
        # One buffer for all chunks: a fresh block per chunk would be faulted in anew.
        scores = vectors.new_empty(min(rows, len(vectors)), len(codes))
        indices = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        for start in range(0, len(vectors), rows):
            chunk = vectors[start : start + rows]
            chunk_scores = torch.addmm(half_norms, chunk, codes.T, alpha=-1, out=scores[: len(chunk)])
            torch.argmin(chunk_scores, dim=1, out=indices[start : start + rows])
    return indices


class VectorQuantizer(nn.Module):
    """A codebook `embedding.weight` [K, D]."""

    def __init__(self, num_codes: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)

    def indices(self, latents: Tensor) -> Tensor:
        """Nearest codes of `latents` [B, D, h, w]: int64 [B, h, w]."""
        batch, embed_dim, height, width = latents.shape
        vectors = latents.permute(0, 2, 3, 1).reshape(-1, embed_dim)
        return nearest_codes(vectors, self.embedding.weight).view(batch, height, width)

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes at `indices` int64 [B, h, w]: [B, D, h, w]."""
        vectors: Tensor = self.embedding(indices)
        return vectors.permute(0, 3, 1, 2).contiguous()

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes; gradients pass straight through to `latents`.

        Args:
            latents: [B, D, h, w].

        Returns:
            The quantized latents [B, D, h, w], the scalar loss of diffusers' VQModel, and the indices [B, h, w].
        """
        indices = self.indices(latents)
        codes = self.lookup(indices)
        loss = (codes.detach() - latents).square().mean() + _LEGACY_BETA * (codes - latents.detach()).square().mean()
        return latents + (codes - latents).detach(), loss, indices
