"""VQGANs written anew from the papers' descriptions, with the parameter names that two published codes have.

    Taming    2012.09841: attention at given levels, plain nearest codes
    LlamaGen  2406.06525: attention at the coarsest level, codes and latents compared and decoded as unit vectors

They share no line with `pipeline.model`: convolutions for projections, distances in float64.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its customary name

GROUPS = 32


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), nn.Conv2d(before, after, 3, 1, 1)
        self.norm2, self.conv2 = norm(after), nn.Conv2d(after, after, 3, 1, 1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5, dim=2)
        return x + self.proj_out(torch.einsum("bij,bcj->bci", weights, v).view_as(x))


class Resample(nn.Module):
    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(channels, channels, 3, 1 if up else 2, 1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.up else F.pad(x, (0, 1, 0, 1)))


class Half(nn.Module):
    """An encoder (`up` False) or a decoder, its blocks named by `code`."""

    def __init__(
        self, code: str, widths: list[int], attended: tuple[int, ...], middle: bool, z: int, *, up: bool
    ) -> None:
        super().__init__()
        order = list(reversed(range(len(widths)))) if up else list(range(len(widths)))
        width = widths[order[0]]
        self.conv_in = nn.Conv2d(z if up else 3, width, 3, 1, 1)
        levels, first = {}, width
        for level in order:
            block = nn.Module()
            blocks = [Residual(width if i == 0 else widths[level], widths[level]) for i in range(2 if up else 1)]
            width = widths[level]
            attention = [Attention(width) for _ in blocks] if level in attended else []
            block.add_module("res" if code == "llamagen" else "block", nn.ModuleList(blocks))
            block.add_module("attn", nn.ModuleList(attention))
            if level != order[-1]:
                block.add_module("upsample" if up else "downsample", Resample(width, up=up))
            levels[level] = block
        last = first if up else width
        names = ["0", "1", "2"] if code == "llamagen" else ["block_1", "attn_1", "block_2"]
        parts: list[Any] = [Residual(last, last), Attention(last) if middle else nn.Identity(), Residual(last, last)]
        self.mid = nn.ModuleDict(dict(zip(names, parts, strict=True)))
        self.order = order
        if code == "llamagen":  # in the order of their use
            self.conv_blocks = nn.ModuleList(levels[level] for level in order)
        else:  # from the finest
            self.add_module("up" if up else "down", nn.ModuleList(levels[level] for level in sorted(levels)))
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, 3 if up else z, 3, 1, 1)
        self.is_decoder, self.in_use = up, [levels[level] for level in order]

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        if self.is_decoder:
            h = self._middle(h)
        for block in self.in_use:
            residuals = getattr(block, "res", None) or block.block
            for i, residual in enumerate(residuals):
                h = residual(h)
                h = block.attn[i](h) if len(block.attn) else h
            for name in ("downsample", "upsample"):
                h = getattr(block, name)(h) if hasattr(block, name) else h
        h = h if self.is_decoder else self._middle(h)
        return self.conv_out(F.silu(self.norm_out(h)))

    def _middle(self, h: Tensor) -> Tensor:
        for layer in self.mid.values():
            h = layer(h)
        return h


class ReferenceVqgan(nn.Module):
    """An f4 VQGAN of one residual block a level, whose codes are drawn from its own latents.

    Args:
        code: `taming` or `llamagen`.
        attended: levels with attention, 0 the finest.
        middle: attention in the middle.
        codes: in the codebook.
    """

    def __init__(
        self, code: str, attended: tuple[int, ...], *, middle: bool = True, codes: int = 64, dims: int = 4
    ) -> None:
        super().__init__()
        widths, z = [32, 32, 64], 8
        self.encoder = Half(code, widths, attended, middle, z, up=False)
        self.decoder = Half(code, widths, attended, middle, z, up=True)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, dims, 1), nn.Conv2d(dims, z, 1)
        self.quantize = nn.Module()
        self.quantize.add_module("embedding", nn.Embedding(codes, dims))
        self.unit = code == "llamagen"
        with torch.no_grad():
            latents = self.latents(torch.rand(4, 3, 64, 64) * 2 - 1).permute(0, 2, 3, 1).reshape(-1, dims)
            spread = torch.rand(codes, 1) * 3 + 0.2 if self.unit else 1.0  # lengths that must not matter
            self.codes.copy_(latents[torch.randperm(len(latents))[:codes]] * spread)

    @property
    def codes(self) -> Tensor:
        return self.quantize.get_submodule("embedding").weight

    def latents(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def indices(self, images: Tensor) -> Tensor:
        vectors, codes = self.latents(images).double().permute(0, 2, 3, 1), self.codes.double()
        if self.unit:
            vectors, codes = F.normalize(vectors, dim=-1), F.normalize(codes, dim=-1)
        return (vectors.unsqueeze(3) - codes).square().sum(-1).argmin(-1)

    def images(self, indices: Tensor) -> Tensor:
        codes = F.normalize(self.codes, dim=-1) if self.unit else self.codes
        return self.decoder(self.post_quant_conv(codes[indices].permute(0, 3, 1, 2)))
