"""Group norm (Wu and He 2018, 1803.08494) and SiLU of channels_last activations: two reads and one write of the tensor.

torch's own group norm on CUDA answers in the contiguous format, which the next convolution must turn back, and writes a
tensor between norm and activation. Here three launches do all of it: moments of each channel over blocks of pixels,
their merging to moments of each group (Chan et al. 1979, so that a large mean costs no digits), and the application.
Sums are float32 whatever the input; the result is rounded once. The twin is `pipeline.model.norm.group_norm_silu`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 1024  # of one program: enough to make the moments a small part of what is read
TILE_ELEMENTS = 4096  # of one step
WARPS = 4


@triton.jit
def moments_kernel(
    x,  # [images, pixels, channels]
    means,  # [images, blocks, channels] float32, written
    squares,  # [images, blocks, channels] float32, written: summed squared deviations from the mean
    pixels,
    channels,
    block: tl.constexpr,
    tile: tl.constexpr,
    lanes: tl.constexpr,
):
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, lanes)
    channel_mask = channel < channels
    last = tl.minimum(part * block + block, pixels)
    # Welford's running moments in every lane of the tile: the lanes are merged once, after the loop.
    count = tl.zeros((tile,), tl.float32)
    mean, square = tl.zeros((tile, lanes), tl.float32), tl.zeros((tile, lanes), tl.float32)
    for first in range(part * block, last, tile):
        pixel = first + tl.arange(0, tile)
        mask = (pixel < last)[:, None] & channel_mask[None, :]
        offsets = (image * pixels + pixel)[:, None] * channels + channel[None, :]
        values = tl.load(x + offsets, mask, 0.0).to(tl.float32)
        count += (pixel < last).to(tl.float32)
        step = tl.where(mask, values - mean, 0.0)
        mean += step * (1.0 / tl.maximum(count, 1.0))[:, None]
        square += step * (values - mean)
    merged = tl.sum(mean * count[:, None], axis=0) / (last - part * block).to(tl.float32)
    apart = mean - merged[None, :]
    square += apart * apart * count[:, None]
    offsets = (image * tl.num_programs(1) + part) * channels + channel
    tl.store(means + offsets, merged, channel_mask)
    tl.store(squares + offsets, tl.sum(square, axis=0), channel_mask)


@triton.jit
def merge_kernel(
    means,  # [images, blocks, channels] float32
    squares,  # [images, blocks, channels] float32
    weight,  # [channels]
    bias,  # [channels]
    scale,  # [images, channels] float32, written
    shift,  # [images, channels] float32, written
    blocks,
    pixels,
    channels,
    eps,
    width,  # channels of a group
    block: tl.constexpr,
    parts: tl.constexpr,
    lanes: tl.constexpr,
):
    image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part, lane = tl.arange(0, parts), tl.arange(0, lanes)
    channel, lane_mask = group * width + lane, lane < width
    mask = (part < blocks)[:, None] & lane_mask[None, :]
    offsets = (image * blocks + part)[:, None] * channels + channel[None, :]
    counts = tl.minimum(pixels - part * block, block).to(tl.float32)[:, None]
    own = tl.load(means + offsets, mask, 0.0)
    total = (pixels * width).to(tl.float32)
    mean = tl.sum(tl.where(mask, own * counts, 0.0)) / total
    between = tl.where(mask, (own - mean) * (own - mean) * counts, 0.0)
    variance = tl.sum(tl.load(squares + offsets, mask, 0.0) + between) / total
    factor = tl.load(weight + channel, lane_mask, 0.0).to(tl.float32) / tl.sqrt_rn(variance + eps)
    offset = tl.load(bias + channel, lane_mask, 0.0).to(tl.float32) - mean * factor
    tl.store(scale + image * channels + channel, factor, lane_mask)
    tl.store(shift + image * channels + channel, offset, lane_mask)


@triton.jit
def apply_kernel(
    x,  # [images, pixels, channels]
    scale,  # [images, channels] float32
    shift,  # [images, channels] float32
    y,  # as x, written
    pixels,
    channels,
    silu: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
    lanes: tl.constexpr,
):
    image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.arange(0, lanes)
    channel_mask = channel < channels
    factor = tl.load(scale + image * channels + channel, channel_mask, 0.0)[None, :]
    offset = tl.load(shift + image * channels + channel, channel_mask, 0.0)[None, :]
    last = tl.minimum(part * block + block, pixels)
    for first in range(part * block, last, tile):
        pixel = first + tl.arange(0, tile)
        mask = (pixel < last)[:, None] & channel_mask[None, :]
        offsets = (image * pixels + pixel)[:, None] * channels + channel[None, :]
        values = tl.load(x + offsets, mask, 0.0).to(tl.float32) * factor + offset
        if silu:
            values *= tl.sigmoid(values)
        tl.store(y + offsets, values.to(y.dtype.element_ty), mask)


def group_norm_fused(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    silu: bool,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Group norm, followed by SiLU if so asked.

    Args:
        x: [B, C, H, W], channels_last, any floating dtype.
        groups: a divisor of C.
        weight: [C].
        bias: [C].
        eps: added to the variance.
        silu: apply x * sigmoid(x) to the result.
        dtype: of the result; None for that of `x`.

    Returns:
        [B, C, H, W], channels_last.
    """
    images, channels, height, width = x.shape
    pixels = height * width
    blocks, lanes = triton.cdiv(pixels, PIXELS), triton.next_power_of_2(channels)
    tile = max(1, TILE_ELEMENTS // lanes)
    y = torch.empty_like(x, dtype=dtype or x.dtype, memory_format=torch.channels_last)
    means, squares = torch.empty(2, images, blocks, channels, dtype=torch.float32, device=x.device)
    scale, shift = torch.empty(2, images, channels, dtype=torch.float32, device=x.device)
    shape = {"block": PIXELS, "tile": tile, "lanes": lanes, "num_warps": WARPS}
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call] # Triton launches on the thread's own
        moments_kernel[images, blocks](x, means, squares, pixels, channels, **shape)
        merge_kernel[images, groups](
            means,
            squares,
            weight,
            bias,
            scale,
            shift,
            blocks,
            pixels,
            channels,
            eps,
            channels // groups,
            block=PIXELS,
            parts=triton.next_power_of_2(blocks),
            lanes=triton.next_power_of_2(channels // groups),
            num_warps=WARPS,
        )
        apply_kernel[images, blocks](x, scale, shift, y, pixels, channels, silu=silu, **shape)
    return y
