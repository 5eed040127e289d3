"""FSQ and LFQ against the papers' formulas, written down once more, number by number."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.tokenizers.formulas import Formula, Fsq, Lfq

FORMULAS: list[Formula] = [Fsq((8, 6, 5)), Fsq((7, 3, 4)), Fsq((8, 8, 8, 5, 5, 5)), Lfq(10), Lfq(18, high_first=True)]


def fsq_digit(value: float, level: int) -> int:
    """2309.15505, appendix A: tanh into a range of `level` integers, rounded, counted from 0."""
    reach = (level - 1) * (1 + 1e-3) / 2
    offset = 0.5 if level % 2 == 0 else 0.0
    return round(math.tanh(value + math.atanh(offset / reach)) * reach - offset) + level // 2


def fsq_index(vector: list[float], levels: tuple[int, ...]) -> int:
    index, place = 0, 1
    for value, level in zip(vector, levels, strict=True):
        index, place = index + place * fsq_digit(value, level), place * level
    return index


def lfq_index(vector: list[float], high_first: bool) -> int:
    """2310.05737, equation 3: one bit a channel, 1 above zero."""
    bits = "".join("1" if value > 0 else "0" for value in vector)
    return int(bits if high_first else bits[::-1], 2)


@pytest.mark.parametrize("formula", FORMULAS, ids=str)
def test_indices_are_the_papers(formula: Formula) -> None:
    latents = torch.randn(2, formula.dims, 9, 7, generator=torch.Generator().manual_seed(0)) * 2
    found = formula.indices(latents)
    assert found.dtype == torch.int64
    for image, row, column in itertools.product(range(2), range(9), range(7)):
        vector = latents[image, :, row, column].double().tolist()
        if isinstance(formula, Fsq):
            assert found[image, row, column] == fsq_index(vector, formula.levels)
        else:
            assert found[image, row, column] == lfq_index(vector, formula.high_first)


class FromHost(TorchDispatchMode):
    """Counts the tensors that are made of numbers of the host: a CUDA graph cannot be captured with one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function is torch.ops.aten.lift_fresh.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("formula", FORMULAS, ids=str)
def test_nothing_comes_from_the_host_when_a_graph_is_captured(formula: Formula) -> None:
    latents = torch.randn(1, formula.dims, 2, 2)
    with torch.inference_mode():
        codes = formula.codes(formula.indices(latents))  # as the warm-up does
        with FromHost() as seen:
            formula.indices(latents)
            formula.indices_of_codes(codes)
    assert seen.count == 0
    with FromHost() as seen:
        torch.tensor([1, 2])
    assert seen.count == 1


@pytest.mark.parametrize("formula", FORMULAS, ids=str)
def test_codes_and_indices_are_one_to_one(formula: Formula) -> None:
    indices = torch.arange(min(formula.codebook_size, 4096)).view(1, -1, 4)
    indices = torch.cat([indices, formula.codebook_size - 1 - indices])
    codes = formula.codes(indices)
    assert codes.shape == (2, formula.dims, *indices.shape[1:])
    assert codes.abs().max() <= 1
    for dtype in (torch.float32, torch.bfloat16):  # Cosmos gives its codes in bfloat16
        assert torch.equal(formula.indices_of_codes(codes.to(dtype)), indices)


def test_published_sizes() -> None:
    assert Fsq((8, 8, 8, 5, 5, 5)).codebook_size == 64_000
    assert Lfq(18).codebook_size == 262_144
    assert Lfq(2).indices(torch.zeros(1, 2, 1, 1)).item() == 0, "zero is below the threshold"
    values = np.unique(Fsq((5,)).codes(torch.arange(5).view(1, 1, 5)).numpy())
    assert values.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("make", [lambda: Fsq(()), lambda: Fsq((8, 2)), lambda: Lfq(0), lambda: Lfq(40)])
def test_parameters_out_of_range(make: object) -> None:
    with pytest.raises(ValueError, match=r"must be (at least 3|in 1\.\.31)"):
        make()
