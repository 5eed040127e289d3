"""Group norms and the activation that follows them.

Every norm is called as `norm(x, zq)`: `zq` [B, D, h, w] are the quantized latents that MoVQ's decoder is conditioned
on, and None everywhere else. Where the weights are float32 and the activations are not, all is summed and activated in
float32, and rounded once. On CUDA one fused kernel does norm and SiLU; what it computes is written here.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, group_norm, interpolate, mish, relu, silu

from pipeline.kernels import kernels_run_on
from pipeline.model.config import SPATIAL_NORM_GROUPS

NORM_EPS = 1e-6
_FUSED = ("silu", "swish")

_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"silu": silu, "swish": silu, "relu": relu, "mish": mish}


def activate(act_fn: str, x: Tensor) -> Tensor:
    """Applies an activation by name; without gradients in place, so `x` must not be used again.

    In place, here and in the residual sum, took 13 % off the encoder's time on a CPU: each block writes two large
    tensors less.
    """
    if act_fn == "gelu":  # has no in-place form
        return gelu(x)
    return _ACTIVATIONS[act_fn](x, inplace=not torch.is_grad_enabled())


class GroupNorm(nn.GroupNorm):
    """A group norm that ignores the condition."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=NORM_EPS)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:  # noqa: ARG002 - the norms share one signature
        return self._fused(x, None, x.dtype) if _takes_kernel(x) else self._plain(x).to(x.dtype)

    def activated(self, act_fn: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The norm of `x` and the activation of that, as `dtype`."""
        if act_fn in _FUSED and _takes_kernel(x):
            return self._fused(x, act_fn, dtype)
        return activate(act_fn, self._plain(x)).to(dtype)

    def _plain(self, x: Tensor) -> Tensor:
        return group_norm(x.to(self.weight.dtype), self.num_groups, self.weight, self.bias, self.eps)

    def _fused(self, x: Tensor, act_fn: str | None, dtype: torch.dtype) -> Tensor:
        from pipeline.kernels.group_norm import group_norm_fused

        return group_norm_fused(
            x, self.num_groups, self.weight, self.bias, self.eps, silu=act_fn is not None, dtype=dtype
        )


def _takes_kernel(x: Tensor) -> bool:
    return kernels_run_on(x) and x.is_contiguous(memory_format=torch.channels_last)


class SpatialNorm(nn.Module):
    """A group norm whose scale and shift are read, per position, from the quantized latents (MoVQ, section 3.1)."""

    def __init__(self, channels: int, zq_channels: int) -> None:
        super().__init__()
        self.norm_layer = GroupNorm(SPATIAL_NORM_GROUPS, channels)
        self.conv_y = nn.Conv2d(zq_channels, channels, 1)
        self.conv_b = nn.Conv2d(zq_channels, channels, 1)

    def forward(self, x: Tensor, zq: Tensor) -> Tensor:
        # A 1x1 convolution and nearest upsampling commute: convolving the small map first saves the large product.
        size = x.shape[-2:]
        scale = interpolate(self.conv_y(zq), size=size, mode="nearest")
        shift = interpolate(self.conv_b(zq), size=size, mode="nearest")
        normed: Tensor = self.norm_layer(x)
        return normed * scale + shift


def norm_and_activate(
    norm: nn.Module, act_fn: str, x: Tensor, zq: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """An activation of a norm of `x`.

    Args:
        norm: a `GroupNorm` or a `SpatialNorm`.
        act_fn: name of the activation.
        x: [B, C, H, W].
        zq: the condition of a `SpatialNorm`.
        dtype: of the result; None for that of `x`.
    """
    dtype = dtype or x.dtype
    if isinstance(norm, GroupNorm):
        return norm.activated(act_fn, x, dtype)
    return activate(act_fn, norm(x, zq)).to(dtype)
