"""The nearest-code kernel against its plain twin, in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.kernels import nearest, try_kernels
from pipeline.kernels.nearest import nearest_codes_fused
from pipeline.model.quantizer import nearest_codes_plain


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time goes by the number of tiles."""
    monkeypatch.setattr(nearest, "ROWS", 128)
    monkeypatch.setattr(nearest, "CODES", 1024)


def draw(rows: int, codes: int, dims: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(dims)
    return torch.randn(rows, dims, generator=generator), torch.randn(codes, dims, generator=generator)


def assert_twins(vectors: Tensor, codes: Tensor) -> None:
    """Both find the same code, or codes whose distances in float64 differ by no more than float32 rounds."""
    found, expected = nearest_codes_fused(vectors, codes), nearest_codes_plain(vectors, codes)
    exact = torch.cdist(vectors.double(), codes.double()).square() / 2
    gap = (exact.gather(1, found[:, None]) - exact.gather(1, expected[:, None])).abs()[:, 0]
    bound = 2e-6 * (1 + vectors.double().square().sum(1) + codes.double().square().sum(1).max())
    assert (found.dtype, found.shape) == (torch.int64, expected.shape)
    assert ((found == expected) | (gap < bound)).all()
    assert (found == expected).float().mean() > 0.98


@pytest.mark.parametrize("dims", [1, 3, 4, 16, 64, 256])
@pytest.mark.parametrize(("rows", "codes"), [(1, 1), (130, 300), (40, 3000)])
def test_kernel_finds_what_its_twin_finds(rows: int, codes: int, dims: int) -> None:
    assert_twins(*draw(rows, codes, dims))


def test_kernel_with_the_tiles_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "ROWS", 64)
    monkeypatch.setattr(nearest, "CODES", 64)
    assert_twins(*draw(100, 200, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_latents_are_compared_in_float32(dtype: torch.dtype) -> None:
    vectors, codes = draw(70, 257, 16)
    found = nearest_codes_fused(vectors.to(dtype), codes)
    assert torch.equal(found, nearest_codes_fused(vectors.to(dtype).float(), codes))


@pytest.mark.parametrize("dims", [3, 64])
@pytest.mark.parametrize("repeats", [2, 30])
def test_tie_goes_to_the_lowest_index(dims: int, repeats: int) -> None:
    """The same codes again and again, within a tile and across tiles."""
    codes = draw(1, 67, dims)[1].repeat(repeats, 1)
    assert torch.equal(nearest_codes_fused(codes[:67], codes), torch.arange(67))


def test_codes_on_the_unit_sphere() -> None:
    vectors, codes = (torch.nn.functional.normalize(part, dim=1) for part in draw(90, 700, 8))
    assert_twins(vectors, codes)


def test_latents_seen_through_other_strides() -> None:
    vectors, codes = draw(4, 33, 60)
    seen = vectors.T[:, :3]  # [60, 3], not contiguous
    assert torch.equal(nearest_codes_fused(seen, codes[:, :3]), nearest_codes_plain(seen, codes[:, :3]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_vector_that_is_not_finite_still_gets_an_index(value: float) -> None:
    found = nearest_codes_fused(torch.full((3, 4), value), draw(1, 33, 4)[1])
    assert ((found >= 0) & (found < 33)).all()


def test_no_vectors() -> None:
    assert nearest_codes_fused(torch.empty(0, 4), torch.randn(8, 4)).shape == (0,)


def test_kernels_are_tried_before_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    try_kernels(torch.device("cpu"))

    def no_compiler(*_: object) -> torch.Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(nearest, "nearest_codes_fused", no_compiler)
    with pytest.raises(ModelError, match=r"needs a C compiler .* RuntimeError: Failed to find C compiler"):
        try_kernels(torch.device("cpu"))
    monkeypatch.setattr(nearest, "nearest_codes_fused", lambda vectors, _: torch.zeros(len(vectors), dtype=torch.int64))
    with pytest.raises(ModelError, match=r"kernels are wrong .* \[0, 0, 0, 0\]"):
        try_kernels(torch.device("cpu"))
