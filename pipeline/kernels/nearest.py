"""Nearest code of each vector, without the [N, K] matrix of distances: it would be written, read and thrown away.

Each program holds `ROWS` vectors and passes over all codes, `CODES` at a time. Every lane of its tile remembers the
best code it saw; the lanes are compared once, at the end. Scores are |e|^2/2 - z.e, as in the twin,
`pipeline.model.quantizer.nearest_codes_plain`, summed dimension by dimension with float32 multiply-adds. A matrix
product (`tl.dot`) would be shorter and, at 256 dimensions, faster, but whether it is float32 depends on Triton: for
sm_100, `input_precision="ieee"` was seen to become TF32 instructions (Triton 3.7.1), which flips tokens; and the search
is about a thousandth of the encoder's arithmetic. Tile sizes are fixed, not tuned at run time: every actor computes the
same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CODES = 64, 64  # of one tile; its scores, best scores and best codes fit into registers
UNROLL, WARPS = 4, 8  # so that nothing spills, on sm_75 to sm_100


@triton.jit
def nearest_kernel(
    vectors,  # [n, dims], any floating dtype
    codes,  # [dims, k] float32: transposed, so that a step's codes lie side by side
    half_norms,  # [k] float32: |e|^2 / 2
    indices,  # [n] int64, written
    n,
    k,
    dims: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    unroll: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows)
    row_mask = row < n
    best = tl.full((rows, columns), float("inf"), tl.float32)
    best_code = tl.zeros((rows, columns), tl.int32)
    for first in range(0, k, columns):
        code = first + tl.arange(0, columns)
        code_mask = code < k
        products = tl.zeros((rows, columns), tl.float32)
        for dim in tl.range(0, dims, loop_unroll_factor=unroll):
            z = tl.load(vectors + row * dims + dim, row_mask, 0.0).to(tl.float32)
            e = tl.load(codes + dim * k + code, code_mask, 0.0)
            products += z[:, None] * e[None, :]
        scores = tl.load(half_norms + code, code_mask, float("inf"))[None, :] - products
        better = scores < best  # strictly: of equal scores a lane keeps the earlier code
        best = tl.where(better, scores, best)
        best_code = tl.where(better, code[None, :], best_code)
    least = tl.min(best, axis=1)
    tied = tl.where(best == least[:, None], best_code, k)
    found = tl.minimum(tl.min(tied, axis=1), k - 1)  # a vector with NaN ties with nothing
    tl.store(indices + row, found.to(tl.int64), row_mask)


def nearest_codes_fused(vectors: Tensor, codes: Tensor) -> Tensor:
    """As `pipeline.model.quantizer.nearest_codes`, in one pass over the codes.

    Args:
        vectors: [N, D], any floating dtype.
        codes: [K, D], any floating dtype, on the same device.

    Returns:
        int64 [N] in [0, K); of equal distances the lowest index. A vector that is not finite gets some index.
    """
    vectors, codes = vectors.contiguous(), codes.float()
    (count, dims), k = vectors.shape, len(codes)
    indices = torch.empty(count, dtype=torch.int64, device=vectors.device)
    if not count:
        return indices
    half_norms = codes.square().sum(dim=1).div_(2)
    with torch.cuda.device_of(vectors):  # type: ignore[no-untyped-call] # Triton launches on the thread's own
        nearest_kernel[(triton.cdiv(count, ROWS),)](
            vectors,
            codes.T.contiguous(),
            half_norms,
            indices,
            count,
            k,
            dims=dims,
            rows=ROWS,
            columns=CODES,
            unroll=UNROLL,
            num_warps=WARPS,
        )
    return indices
