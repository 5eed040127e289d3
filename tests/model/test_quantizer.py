"""The nearest-code search against float64, and the codebook."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipeline.model.quantizer import VectorQuantizer, full_float32, nearest_codes


@pytest.mark.parametrize(("rows", "codes", "dims"), [(1, 1, 1), (7, 5, 3), (700, 1024, 16), (130, 20_000, 4)])
def test_nearest_code_against_float64(rows: int, codes: int, dims: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    vectors = torch.randn(rows, dims, generator=generator)
    codebook = torch.randn(codes, dims, generator=generator)
    exact = torch.cdist(vectors.double(), codebook.double())
    found = exact.gather(1, nearest_codes(vectors, codebook)[:, None])[:, 0]
    # The found code may be another than the nearest only by float32's rounding of the squared distance.
    assert ((found**2 - exact.min(dim=1).values ** 2) <= 1e-5 * (1 + vectors.double().square().sum(1))).all()


@pytest.mark.parametrize("repeats", [2, 3, 64])
def test_tie_goes_to_the_lowest_index(repeats: int) -> None:
    codebook = torch.randn(37, 16, generator=torch.Generator().manual_seed(0)).repeat(repeats, 1)
    assert torch.equal(nearest_codes(codebook, codebook), torch.arange(37).repeat(repeats))


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    vectors, codebook = torch.randn(1000, 8, generator=generator), torch.randn(256, 8, generator=generator)
    whole = nearest_codes(vectors, codebook)
    monkeypatch.setattr("pipeline.model.quantizer._CPU_CHUNK_BYTES", 1)  # chunks of the least size, 64 rows
    assert torch.equal(nearest_codes(vectors, codebook), whole)


def test_no_vectors() -> None:
    assert nearest_codes(torch.empty(0, 4), torch.randn(8, 4)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compare_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(500, 32, generator=generator).to(dtype)
    codebook = torch.randn(512, 32, generator=generator).to(dtype)
    expected = nearest_codes(vectors.float(), codebook.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_codes(vectors, codebook), expected)


@pytest.fixture
def reduced_precision() -> Iterator[Any]:
    backend = torch.backends.mkldnn.matmul
    saved = backend.fp32_precision
    backend.fp32_precision = "bf16"
    yield backend
    backend.fp32_precision = saved


def test_full_float32_ends_with_its_block_even_after_an_error(reduced_precision: Any) -> None:
    def fail_inside() -> None:
        with full_float32(torch.device("cpu")):
            raise KeyError(reduced_precision.fp32_precision)

    with pytest.raises(KeyError, match="ieee"):
        fail_inside()
    assert reduced_precision.fp32_precision == "bf16"


def test_gradients_pass_straight_through() -> None:
    quantizer = VectorQuantizer(16, 4)
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    codes, _, indices = quantizer(latents)
    weights = torch.randn(2, 4, 3, 3)
    (codes * weights).sum().backward()
    assert torch.equal(latents.grad, weights)
    assert torch.allclose(codes, quantizer.lookup(indices), atol=1e-6)
