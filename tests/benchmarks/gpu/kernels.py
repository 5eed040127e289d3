"""The kernels on the device: held to their twins, and beside what one would write without them."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import group_norm, silu

from pipeline.kernels.group_norm import group_norm_fused
from pipeline.kernels.nearest import nearest_codes_fused
from pipeline.model.norm import NORM_EPS
from pipeline.model.quantizer import nearest_codes_plain
from tests.benchmarks.gpu.ceilings import Figures, seconds
from tests.benchmarks.gpu.geometries import Scale

SEARCHES = {"f16": (256, 1024, 256), "vq-f4": (4096, 8192, 3), "aMUSEd": (256, 8192, 64), "MoVQ": (1024, 16_384, 4)}
GROUPS = 32
HALVES = {torch.float32: 3e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}  # rounding of the result


def check_kernels(scale: Scale, device: str) -> Iterator[tuple[str, bool, str]]:
    """Name, verdict and figure of each check."""
    small = scale.shrink > 1
    for dims in (3, 64) if small else (1, 3, 4, 16, 64, 256):
        for rows, codes in ((1, 1), (130, 300), (70, 200) if small else (50_000, 16_384)):
            yield check_search(rows, codes, dims, device)
    repeats = 4 if small else 30
    codes = torch.randn(67, 16, device=device).repeat(repeats, 1)
    ties = torch.equal(nearest_codes_fused(codes[:67], codes), torch.arange(67, device=device))
    yield "ties go to the lowest index", ties, f"67 codes, {repeats} times each"
    for channels, side, mean in ((96, 5, 5.0), *(() if small else ((128, 256, 0.0), (512, 16, 100.0), (768, 8, 0.0)))):
        for dtype in HALVES:
            yield check_norm(channels, side, mean, dtype, device)


def check_search(rows: int, codes: int, dims: int, device: str) -> tuple[str, bool, str]:
    """Each code found must be the twin's, or as near as float32 can tell; by float64."""
    vectors, table = torch.randn(rows, dims, device=device), torch.randn(codes, dims, device=device)
    with torch.no_grad():
        found, expected = nearest_codes_fused(vectors, table), nearest_codes_plain(vectors, table)
    chosen, twin = (table.double()[index] for index in (found, expected))
    gap = ((vectors.double() - chosen).square() - (vectors.double() - twin).square()).sum(1).abs()
    bound = 4e-6 * (1 + vectors.double().square().sum(1) + table.double().square().sum(1).max())
    same = float((found == expected).double().mean())
    held = bool((gap <= bound).all()) and same > 0.98
    return f"nearest of {codes:,} codes, {dims} dimensions, {rows:,} vectors", held, f"{same:.5f} as the twin"


def check_norm(channels: int, side: int, mean: float, dtype: torch.dtype, device: str) -> tuple[str, bool, str]:
    """Group norm with SiLU against float64."""
    x = (torch.randn(2, channels, side, side, device=device) * 2 + mean).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels, device=device)
    got = group_norm_fused(x, GROUPS, weight, bias, NORM_EPS, silu=True)
    exact = silu(group_norm(x.double(), GROUPS, weight.double(), bias.double(), NORM_EPS))
    worst = float(((got.double() - exact).abs() - HALVES[dtype] * exact.abs()).max())
    name = f"group norm, {channels} x {side} x {side}, mean {mean:g}, {str(dtype).removeprefix('torch.')}"
    return name, worst < 3e-6 * (10 + abs(mean)), f"worst error beyond rounding {worst:.1e}"


def rivals(scale: Scale, device: str) -> dict[str, Figures]:
    """Milliseconds of each kernel and of its rivals, at the batch that is measured last."""
    batch, found = scale.batches[-1] if scale.shrink == 1 else 1, {}
    small = scale.shrink > 1
    for name, (tokens, codes, dims) in SEARCHES.items() if not small else [("vq-f4", SEARCHES["vq-f4"])]:
        table = torch.randn(codes // scale.shrink**2, dims, device=device)
        vectors = torch.randn(batch * tokens // scale.shrink**3, dims, device=device)
        ways = {"kernel": nearest_codes_fused, "addmm in chunks": nearest_codes_plain, "cdist": _cdist}
        found[f"nearest code, {name}"] = {
            way: 1e3 * seconds(partial(_quietly, work, vectors, table), device) for way, work in ways.items()
        }
    for channels, side in ((512, 16),) if small else ((128, 256), (512, 16)):
        x = torch.randn(min(batch, 64), channels, side // scale.shrink, side // scale.shrink, device=device)
        x = x.to(torch.float16 if device == "cuda" else torch.float32).to(memory_format=torch.channels_last)
        found[f"group norm and SiLU, {channels} x {side} x {side}"] = _norms(x, device)
    return found


def _norms(x: Tensor, device: str) -> Figures:
    weight, bias = torch.ones(2, x.shape[1], device=device)
    own = seconds(lambda: group_norm_fused(x, GROUPS, weight, bias, NORM_EPS, silu=True), device)
    plain = seconds(lambda: silu(group_norm(x, GROUPS, weight.to(x.dtype), bias.to(x.dtype), NORM_EPS)), device)
    return {"kernel": 1e3 * own, "torch": 1e3 * plain, "kernel_gb_s": 3 * x.nbytes / own / 1e9}


def _quietly(work: object, vectors: Tensor, table: Tensor) -> None:
    with torch.no_grad():
        work(vectors, table)  # type: ignore[operator]


def _cdist(vectors: Tensor, table: Tensor) -> Tensor:
    rows = max(1, (1 << 30) // (4 * len(table)))  # a gigabyte of distances at a time
    return torch.cat([torch.cdist(some, table).argmin(1) for some in vectors.split(rows)])
