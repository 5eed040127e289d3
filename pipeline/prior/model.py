"""One transformer for both priors: causal (GPT, LlamaGen) or bidirectional (MaskGIT), over a grid of tokens.

* Pre-norm with RMSNorm (1910.07467), no biases, attention by SDPA with normalised queries and keys (2010.04245), a
  SwiGLU (2002.05202), embeddings shared by input and output.
* A slot of the sequence *holds* one token and *asks* for one place: the same place if the model is bidirectional, the
  next one if it is causal. Rotary positions of row and column (2104.09864, in two dimensions as in 2403.13298) turn
  keys by the place held and queries by the place asked for, so "the token above the one wanted" is always the same
  offset, also at the end of a row.
* Rows and columns asked for are embedded as well: photographs have a top and a bottom.
* The first slot holds the condition, which has a place of its own outside the grid.

Vocabulary: [0, codes) the tokens; codes: MASK; codes + 1 + c: condition c; the last of all: no condition.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, rms_norm, scaled_dot_product_attention, silu

_ROTARY_BASE = 100.0  # grids have tens of rows, not texts' thousands of places


@dataclass(frozen=True, slots=True)
class Geometry:
    """What decides the shape of the weights.

    Attributes:
        codes: K, of the VQ model.
        grid_height, grid_width: h and w.
        classes: conditions beside "none"; 0: unconditional.
        causal: a slot sees only itself and those before it.
        dim: channels; a multiple of 4 * heads.
        layers, heads: of the transformer.
    """

    codes: int
    grid_height: int
    grid_width: int
    classes: int
    causal: bool
    dim: int
    layers: int
    heads: int

    @property
    def places(self) -> int:
        """N = h * w, the tokens of an image."""
        return self.grid_height * self.grid_width

    @property
    def mask(self) -> int:
        """The id that hides a token."""
        return self.codes

    @property
    def none(self) -> int:
        """The number of the condition that says nothing."""
        return self.classes


@dataclass(slots=True)
class Cache:
    """Keys and values of the slots that a causal model has seen, by layer: [B, heads, places, dim / heads] each."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    length: int = 0


class Transformer(nn.Module):
    """Logits of every place of a grid of tokens.

    Args:
        geometry: the shape.
        dropped: dropout of embeddings and residual branches while training, in [0, 1).
    """

    held: Tensor
    asked: Tensor
    places: Tensor
    turns: Tensor

    def __init__(self, geometry: Geometry, dropped: float = 0.0) -> None:
        super().__init__()
        self.geometry, self.dropped = geometry, dropped
        dim = geometry.dim
        self.vocabulary = nn.Embedding(geometry.codes + 2 + geometry.classes, dim)
        self.rows = nn.Embedding(geometry.grid_height + 1, dim)
        self.columns = nn.Embedding(geometry.grid_width + 1, dim)
        self.blocks = nn.ModuleList(Block(dim, geometry.heads, dropped) for _ in range(geometry.layers))
        self.norm = nn.RMSNorm(dim)
        places = _places(geometry)
        self.register_buffer("places", places, persistent=False)  # [1 + N, 2]
        self.register_buffer("turns", _turns(places, dim // geometry.heads), persistent=False)
        slots = torch.arange(len(places))
        self.register_buffer("held", slots[:-1] if geometry.causal else slots, persistent=False)
        self.register_buffer("asked", slots[1:] if geometry.causal else slots, persistent=False)
        self._initialise()

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Logits float [B, N, K] of every place: from the tokens before it if causal, else from all that are not MASK.

        Args:
            tokens: int64 [B, N], row-major; MASK where hidden.
            condition: int64 [B] in [0, classes]; `classes` for none.
        """
        first = self._condition_ids(condition)
        if self.geometry.causal:
            return self._logits(torch.cat([first, tokens[:, :-1]], 1), slice(None))
        return self._logits(torch.cat([first, tokens], 1), slice(None))[:, 1:]

    def next(self, last: Tensor | None, condition: Tensor, cache: Cache) -> Tensor:
        """Logits float [B, K] of the next place of a causal model that is asked place by place.

        Args:
            last: int64 [B], the token of the place before; None at the first place.
            condition: as in `forward`.
            cache: empty at the first place, then the same again.
        """
        ids = self._condition_ids(condition) if last is None else last[:, None]
        return self._logits(ids, slice(cache.length, cache.length + 1), cache)[:, 0]

    def _condition_ids(self, condition: Tensor) -> Tensor:
        return condition[:, None] + (self.geometry.codes + 1)

    def _logits(self, ids: Tensor, slots: slice, cache: Cache | None = None) -> Tensor:
        """Logits [B, S, K] of some slots."""
        asked, held = self.asked[slots], self.held[slots]
        row, column = self.places[asked].unbind(-1)
        x = self.vocabulary(ids) + self.rows(row) + self.columns(column)
        x = dropout(x, self.dropped, self.training)
        turns = self.turns[asked], self.turns[held]
        for number, block in enumerate(self.blocks):
            x = block(x, turns, self.geometry.causal, cache, number)
        if cache is not None:
            cache.length += ids.shape[1]
        return linear(self.norm(x), self.vocabulary.weight[: self.geometry.codes])

    def _initialise(self) -> None:
        """Everything keeps its scale, and logits begin with variance one.

        Branches are small but not zero, and embeddings not the usual 0.02: from there the masked prior stays at the
        unigram for hundreds of steps, because every hidden place looks alike.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                fan_in = module.weight.shape[1]
                nn.init.normal_(module.weight, std=fan_in**-0.5)
        for block in self.blocks:
            assert isinstance(block, Block)
            for last in (block.project, block.down):
                last.weight.data.div_(math.sqrt(2 * len(self.blocks)))


class Block(nn.Module):
    """Attention, then a SwiGLU, each beside a residual connection."""

    def __init__(self, dim: int, heads: int, dropped: float) -> None:
        super().__init__()
        self.heads, self.dropped = heads, dropped
        hidden = 64 * -(-dim * 8 // (3 * 64))  # as many weights as four times dim with one matrix less, rounded up
        self.attention_norm, self.mlp_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.project = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(
        self, x: Tensor, turns: tuple[Tensor, Tensor], causal: bool, cache: Cache | None, number: int
    ) -> Tensor:
        """x [B, S, dim] -> [B, S, dim]; `turns` of the places asked for and held, [S, dim / heads / 2] each."""
        x = x + dropout(self._attend(self.attention_norm(x), turns, causal, cache, number), self.dropped, self.training)
        value, gate = self.up(self.mlp_norm(x)).chunk(2, -1)
        return x + dropout(self.down(value * silu(gate)), self.dropped, self.training)

    def _attend(
        self, x: Tensor, turns: tuple[Tensor, Tensor], causal: bool, cache: Cache | None, number: int
    ) -> Tensor:
        batch, slots, dim = x.shape
        q, k, v = self.qkv(x).view(batch, slots, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [B, heads, S, d] each
        q, k = _turned(rms_norm(q, q.shape[-1:]), turns[0]), _turned(rms_norm(k, k.shape[-1:]), turns[1])
        q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast only products are rounded
        if cache is not None:
            k, v = _remember(cache, number, k, v)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=causal and cache is None)
        output: Tensor = self.project(mixed.transpose(1, 2).reshape(batch, slots, dim))
        return output


def _remember(cache: Cache, number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """All keys and values of a layer so far, with these."""
    if number == len(cache.layers):
        cache.layers.append((k, v))
    else:
        before = cache.layers[number]
        cache.layers[number] = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
    return cache.layers[number]


def _places(geometry: Geometry) -> Tensor:
    """Row and column of the condition (0, 0) and of each place of the grid, from (1, 1): int64 [1 + N, 2]."""
    grid = torch.cartesian_prod(torch.arange(geometry.grid_height), torch.arange(geometry.grid_width)) + 1
    return torch.cat([torch.zeros(1, 2, dtype=torch.int64), grid.reshape(-1, 2)])


def _turns(places: Tensor, channels: int) -> Tensor:
    """exp(i angle) of each place and pair of a head's channels: complex64 [1 + N, channels / 2]; rows, then columns."""
    frequencies = _ROTARY_BASE ** (-torch.arange(channels // 4) / (channels // 4))
    angles = (places[:, :, None] * frequencies).flatten(1)
    return torch.polar(torch.ones_like(angles), angles)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Pairs of channels of x [B, heads, S, d], each turned by its angle [S, d / 2]: float32."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2)
