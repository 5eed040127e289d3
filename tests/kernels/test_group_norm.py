"""The fused group norm against float64 and against its plain twin, in Triton's interpreter."""

import pytest
import torch
from torch.nn.functional import group_norm, silu

from pipeline.kernels.group_norm import group_norm_fused
from pipeline.model.norm import GroupNorm, norm_and_activate

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of a large negative value: SiLU is 0
# What one rounding to the result's type may cost, relative to the value. (The interpreter cuts bfloat16 off.)
ROUNDING = {torch.float32: 2e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}


def draw(channels: int, side: int, dtype: torch.dtype, mean: float) -> tuple[torch.Tensor, GroupNorm]:
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(2, channels, side, side + 3, generator=generator) * 2 + mean
    norm = GroupNorm(4, channels)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator))
        norm.bias.copy_(torch.randn(channels, generator=generator))
    return x.to(dtype).to(memory_format=torch.channels_last), norm


@pytest.mark.parametrize("act", [True, False], ids=["silu", "plain"])
@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize(
    ("channels", "side", "mean"),
    [(8, 1, 0.0), (32, 30, 0.0), (96, 5, 5.0), (512, 4, 0.0), (12, 41, 100.0)],  # 41 x 44 pixels: two programs
)
def test_kernel_against_float64(channels: int, side: int, mean: float, dtype: torch.dtype, act: bool) -> None:
    x, norm = draw(channels, side, dtype, mean)
    with torch.no_grad():
        got = group_norm_fused(x, 4, norm.weight, norm.bias, norm.eps, silu=act)
        exact = group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)
    exact = silu(exact) if act else exact
    assert got.dtype is dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    error = (got.double() - exact).abs() - ROUNDING[dtype] * exact.abs()
    assert error.max() < 2e-6 * (10 + abs(mean))


def test_result_of_another_type() -> None:
    x, norm = draw(16, 6, torch.float16, 1.0)
    with torch.no_grad():
        got = group_norm_fused(x, 4, norm.weight, norm.bias, norm.eps, silu=True, dtype=torch.float32)
        assert got.dtype is torch.float32
        assert torch.allclose(got, norm.activated("silu", x, torch.float32), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_twin_rounds_half_precision_once(dtype: torch.dtype) -> None:
    x, norm = draw(32, 8, dtype, 0.5)
    with torch.no_grad():
        once = silu(group_norm(x.float(), 4, norm.weight, norm.bias, norm.eps)).to(dtype)
        assert torch.equal(norm_and_activate(norm, "silu", x), once)
        assert norm(x).dtype is dtype
