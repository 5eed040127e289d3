"""The convolutional encoder and decoder of VQGAN (Esser et al. 2021, 2012.09841), with MoVQ's norms (2209.09002).

Parameter names are diffusers' (`encoder.down_blocks.0.resnets.0.conv1.weight`, ...): its checkpoints load unchanged.
Tensors are [B, C, H, W]; all blocks keep the memory format of their input. `zq` is the condition of the norms.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention

from pipeline.model.config import VQModelConfig
from pipeline.model.norm import GroupNorm, SpatialNorm, norm_and_activate

CPU_PIXELS = 128 * 128  # that a core takes through the finest level at a time: a quarter of the memory, no less speed
_OUT_ACTIVATION = "silu"  # before the last convolution, whatever act_fn is, as in diffusers


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of an encoder or a decoder share.

    Attributes:
        act_fn: name of the activation.
        groups: groups of the plain group norms.
        zq_channels: channels of the condition; None for plain group norms.
    """

    act_fn: str
    groups: int
    zq_channels: int | None = None

    def norm(self, channels: int) -> nn.Module:
        """A norm over `channels` channels, called as `norm(x, zq)`."""
        if self.zq_channels is None:
            return GroupNorm(self.groups, channels)
        return SpatialNorm(channels, self.zq_channels)


class ResnetBlock(nn.Module):
    """Twice norm, activation, 3x3 convolution; plus the input."""

    def __init__(self, in_channels: int, out_channels: int, style: BlockStyle) -> None:
        super().__init__()
        self.norm1 = style.norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = style.norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self._act_fn = style.act_fn

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        h: Tensor = self.conv1(norm_and_activate(self.norm1, self._act_fn, x, zq))
        h = norm_and_activate(self.norm2, self._act_fn, h, zq)  # a line of its own: what it was made of is freed
        h = self.conv2(h)
        h += x if self.conv_shortcut is None else self.conv_shortcut(x)
        return h


class Attention(nn.Module):
    """Self-attention with one head over all positions; plus the input."""

    def __init__(self, channels: int, style: BlockStyle) -> None:
        super().__init__()
        self._norm_name = "group_norm" if style.zq_channels is None else "spatial_norm"
        self.add_module(self._norm_name, style.norm(channels))
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        batch, channels, height, width = x.shape
        normed = self.get_submodule(self._norm_name)(x, zq)
        positions = normed.permute(0, 2, 3, 1).reshape(batch, 1, height * width, channels)  # one head
        mixed = scaled_dot_product_attention(self.to_q(positions), self.to_k(positions), self.to_v(positions))
        update: Tensor = self.to_out[0](mixed).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + update


class Downsample(nn.Module):
    """Halves both sides by a strided convolution, padded at the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:  # noqa: ARG002 - layers share one signature
        h: Tensor = self.conv(pad(x, (0, 1, 0, 1)))
        return h


class Upsample(nn.Module):
    """Doubles both sides: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:  # noqa: ARG002 - layers share one signature
        h: Tensor = self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
        return h


def _resnets(in_channels: int, out_channels: int, count: int, style: BlockStyle) -> nn.ModuleList:
    widths = [in_channels] + [out_channels] * count
    return nn.ModuleList(ResnetBlock(widths[i], out_channels, style) for i in range(count))


def _attentions(channels: int, count: int, style: BlockStyle) -> nn.ModuleList:
    return nn.ModuleList(Attention(channels, style) for _ in range(count))


class Level(nn.Module):
    """The layers of one resolution: residual blocks, each followed by attention where the level has it."""

    def __init__(self, resnets: nn.ModuleList, attentions: nn.ModuleList) -> None:
        super().__init__()
        self.resnets = resnets
        self.attentions = attentions

    def layers(self) -> list[nn.Module]:
        """In order; each is called as `layer(x, zq)`."""
        pairs = zip_longest(self.resnets, self.attentions)
        return [layer for pair in pairs for layer in pair if layer is not None]


class DownLevel(Level):
    """A level of the encoder; all but the last end by halving the sides."""

    def __init__(self, in_channels: int, out_channels: int, config: VQModelConfig, index: int) -> None:
        style = BlockStyle(config.act_fn, config.norm_num_groups)
        attended = config.layers_per_block if config.down_block_types[index].startswith("Attn") else 0
        super().__init__(
            _resnets(in_channels, out_channels, config.layers_per_block, style),
            _attentions(out_channels, attended, style),
        )
        last = index == len(config.block_out_channels) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out_channels)])

    def layers(self) -> list[nn.Module]:
        return [*super().layers(), *self.downsamplers]


class UpLevel(Level):
    """A level of the decoder; all but the last end by doubling the sides."""

    def __init__(self, in_channels: int, out_channels: int, config: VQModelConfig, index: int) -> None:
        style = decoder_style(config)
        layers = config.layers_per_block + 1
        attended = layers if config.up_block_types[index].startswith("Attn") else 0
        super().__init__(_resnets(in_channels, out_channels, layers, style), _attentions(out_channels, attended, style))
        last = index == len(config.block_out_channels) - 1
        self.upsamplers = nn.ModuleList([] if last else [Upsample(out_channels)])

    def layers(self) -> list[nn.Module]:
        return [*super().layers(), *self.upsamplers]


def decoder_style(config: VQModelConfig) -> BlockStyle:
    """The decoder's activation and norms; the encoder's norms are never conditioned."""
    zq_channels = config.latent_channels if config.norm_type == "spatial" else None
    return BlockStyle(config.act_fn, config.norm_num_groups, zq_channels)


def _mid_block(channels: int, attended: bool, style: BlockStyle) -> Level:
    return Level(_resnets(channels, channels, 2, style), _attentions(channels, 1 if attended else 0, style))


def _through(levels: Iterable[nn.Module], x: Tensor, zq: Tensor | None = None) -> Tensor:
    """All layers in one loop: within a function for each level, its caller would hold on to the level's input."""
    for level in levels:
        for layer in level.layers():  # type: ignore[operator]  # of a Level
            x = layer(x, zq)
    return x


class Encoder(nn.Module):
    """Images [B, in_channels, H, W] to features [B, latent_channels, H/downsample, W/downsample]."""

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        style = BlockStyle(config.act_fn, config.norm_num_groups)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownLevel(widths[max(i - 1, 0)], width, config, i) for i, width in enumerate(widths)
        )
        self.mid_block = _mid_block(widths[-1], config.mid_block_add_attention, style)
        self.conv_norm_out = style.norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = _through([*self.down_blocks[1:], self.mid_block], self._at_full_resolution(x))
        last = norm_and_activate(self.conv_norm_out, _OUT_ACTIVATION, x, dtype=self.conv_out.weight.dtype)
        features: Tensor = self.conv_out(last)
        return features

    def _at_full_resolution(self, x: Tensor) -> Tensor:
        """The first level; on a CPU a few images at a time, as its activations are the largest by far."""
        few = len(x) if x.is_cuda else max(1, CPU_PIXELS // (x.shape[2] * x.shape[3]))
        pieces = [_through(self.down_blocks[:1], self.conv_in(piece)) for piece in torch.split(x, few)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class Decoder(nn.Module):
    """Features [B, latent_channels, h, w] to images [B, out_channels, h*downsample, w*downsample]."""

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]  # coarsest first
        style = decoder_style(config)
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = _mid_block(widths[0], config.mid_block_add_attention, style)
        self.up_blocks = nn.ModuleList(
            UpLevel(widths[max(i - 1, 0)], width, config, i) for i, width in enumerate(widths)
        )
        self.conv_norm_out = style.norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        x = _through([self.mid_block, *self.up_blocks], self.conv_in(x), zq)
        images: Tensor = self.conv_out(norm_and_activate(self.conv_norm_out, _OUT_ACTIVATION, x, zq))
        return images
