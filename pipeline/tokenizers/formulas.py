"""Quantizers without a codebook: each channel of a latent is rounded by itself and is a digit of the index.

    Fsq  finite scalar quantization, 2309.15505 (Cosmos); digits of several levels
    Lfq  lookup-free quantization, 2310.05737 (MAGVIT-v2, Open-MAGVIT2); bits

Both compute in float32 whatever they are given.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

_FSQ_MARGIN = 1e-3  # the paper's eps: tanh reaches the outermost levels


class Formula(Protocol):
    """What both of them do."""

    @property
    def dims(self) -> int:
        """Channels of a latent."""
        ...

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        ...

    def indices(self, latents: Tensor) -> Tensor:
        """Latents [B, D, h, w], not quantized, to int64 [B, h, w]."""
        ...

    def indices_of_codes(self, codes: Tensor) -> Tensor:
        """Codes [B, D, h, w], quantized, to int64 [B, h, w]."""
        ...

    def codes(self, indices: Tensor) -> Tensor:
        """Indices int64 [B, h, w] to codes float32 [B, D, h, w], about in [-1, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class Fsq:
    """Channel i has `levels[i]` values; the first channel is the lowest digit of the index.

    A level count is at least 3: with 2, published codes differ in what they round.
    """

    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 3:
            raise ValueError(f"levels must be at least 3 for each channel, got {list(self.levels)}")

    @property
    def dims(self) -> int:
        """Channels of a latent."""
        return len(self.levels)

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    def indices(self, latents: Tensor) -> Tensor:
        """Bound each channel by tanh, round, and read the digits."""
        levels = self._per_channel(self.levels, latents).float()
        reach = (levels - 1) * (1 + _FSQ_MARGIN) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)  # an even number of levels lies between the integers
        bounded = torch.tanh(latents.float() + torch.atanh(offset / reach)) * reach - offset
        return self._number(bounded.round().long() + self._middle(latents))

    def indices_of_codes(self, codes: Tensor) -> Tensor:
        """Read the digits of codes."""
        middle = self._middle(codes)
        return self._number((codes.float() * middle).round().long() + middle)

    def codes(self, indices: Tensor) -> Tensor:
        """Digit by digit, from [0, level) to [-1, 1]."""
        digits = indices.unsqueeze(1) // self._places(indices) % self._per_channel(self.levels, indices)
        middle = self._middle(indices)
        return (digits - middle).float() / middle

    def _number(self, digits: Tensor) -> Tensor:
        return (digits * self._places(digits)).sum(dim=1)

    def _places(self, like: Tensor) -> Tensor:
        return self._per_channel(tuple(math.prod(self.levels[:i]) for i in range(self.dims)), like)

    def _middle(self, like: Tensor) -> Tensor:
        return self._per_channel(tuple(level // 2 for level in self.levels), like)

    def _per_channel(self, values: tuple[int, ...], like: Tensor) -> Tensor:
        return _constant(values, like.device).view(1, self.dims, 1, 1)


@cache
def _constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers on a device, brought there once: while a CUDA graph is captured nothing may come from the host."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


@dataclass(frozen=True, slots=True)
class Lfq:
    """A bit for each channel: 1 above zero.

    Attributes:
        bits: number of channels.
        high_first: the first channel is the highest bit, as in lucidrains' code; else the lowest, as in Open-MAGVIT2's.
    """

    bits: int
    high_first: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 31:
            raise ValueError(f"bits must be in 1..31, got {self.bits}")

    @property
    def dims(self) -> int:
        """Channels of a latent."""
        return self.bits

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return int(2**self.bits)

    def indices(self, latents: Tensor) -> Tensor:
        """Read the signs."""
        return ((latents > 0).long() << self._places(latents)).sum(dim=1)

    def indices_of_codes(self, codes: Tensor) -> Tensor:
        """The same: a code has its latent's signs."""
        return self.indices(codes)

    def codes(self, indices: Tensor) -> Tensor:
        """-1 or 1 in each channel."""
        return (indices.unsqueeze(1) >> self._places(indices) & 1).float() * 2 - 1

    def _places(self, like: Tensor) -> Tensor:
        places = torch.arange(self.bits, device=like.device)
        return (places.flip(0) if self.high_first else places).view(1, self.bits, 1, 1)
