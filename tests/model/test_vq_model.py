"""Pixels to tokens and back."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.model import VQModel, VQModelConfig, denormalise, normalise


@pytest.fixture
def noise() -> Tensor:
    return torch.randint(0, 256, (4, 16, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def test_tokens_of_uint8_and_of_normalised_images(tiny: VQModel, noise: Tensor) -> None:
    tokens = tiny.encode_indices(noise)
    assert tokens.dtype == torch.int64
    assert tokens.shape == (4, 8, 12)
    assert len(tokens.unique()) > tiny.codebook_size // 2
    assert torch.equal(tiny.encode_indices(normalise(noise)), tokens)


def test_normalised_range() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert normalise(images).flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0])


def test_pixels_come_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(2, 8, 16, 3)
    assert torch.equal(denormalise(normalise(pixels)), pixels)
    between = torch.tensor([0.4, 0.6, 254.4, 254.6]).sub(127.5).div(127.5)
    assert denormalise(between.view(1, 1, 2, 2)).flatten().tolist() == [0, 1, 254, 255]


def test_model_of_unit_range(tiny: VQModel, noise: Tensor) -> None:
    """As aMUSEd's: pixels enter as x / 255 and come out the same way; those who call in [-1, 1] need not know."""
    unit = VQModel(tiny.config, value_range="0..1").eval()
    unit.load_state_dict(tiny.state_dict())
    planes = noise.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        _, _, expected = tiny.quantize(tiny.encode(planes).latents)
        reconstruction = tiny(planes).sample.clamp(0, 1)
    tokens = unit.encode_indices(noise)
    assert torch.equal(tokens, expected)
    assert not torch.equal(tokens, tiny.encode_indices(noise))
    assert (unit.encode_indices(normalise(noise)) == tokens).float().mean() > 0.99
    assert torch.allclose(unit.decode_indices(tokens), reconstruction * 2 - 1, atol=1e-5)


def test_tokens_are_the_quantized_latents(tiny: VQModel, noise: Tensor) -> None:
    with torch.no_grad():
        _, _, indices = tiny.quantize(tiny.encode(normalise(noise)).latents)
    assert torch.equal(tiny.encode_indices(noise), indices)


def test_decoded_tokens_are_the_reconstruction(tiny: VQModel, noise: Tensor) -> None:
    with torch.no_grad():
        reconstruction = tiny(normalise(noise)).sample.clamp(-1, 1)
    decoded = tiny.decode_indices(tiny.encode_indices(noise))
    assert decoded.shape == (4, 3, 16, 24)
    assert torch.allclose(decoded, reconstruction, atol=1e-5)


def test_channels_last_model_takes_any_image(tiny: VQModel, noise: Tensor) -> None:
    converted = VQModel(tiny.config).eval()
    converted.load_state_dict(tiny.state_dict())
    converted.to(memory_format=torch.channels_last)
    assert (tiny.memory_format, converted.memory_format) == (torch.contiguous_format, torch.channels_last)
    tokens = tiny.encode_indices(noise)
    assert torch.equal(converted.encode_indices(noise), tokens)
    assert torch.equal(converted.encode_indices(normalise(noise).contiguous()), tokens)
    assert torch.allclose(converted.decode_indices(tokens), tiny.decode_indices(tokens), atol=1e-5)


def test_inference_mode(tiny: VQModel, noise: Tensor) -> None:
    tokens = tiny.encode_indices(noise)
    with torch.inference_mode():
        assert torch.equal(tiny.encode_indices(noise), tokens)
        tiny.decode_indices(tokens)


def test_tokens_carry_no_gradient(tiny: VQModel, noise: Tensor) -> None:
    images = normalise(noise).requires_grad_()
    assert not tiny.decode_indices(tiny.encode_indices(images)).requires_grad


def test_half_precision_weights(tiny: VQModel, noise: Tensor) -> None:
    half = VQModel(tiny.config).eval()
    half.load_state_dict(tiny.state_dict())
    half.to(torch.bfloat16)
    agreement = (half.encode_indices(noise) == tiny.encode_indices(noise)).float().mean()
    assert agreement > 0.7
    assert half.decode_indices(half.encode_indices(noise)).dtype == torch.bfloat16


def test_properties(tiny: VQModel) -> None:
    assert (tiny.codebook_size, tiny.downsample, tiny.embed_dim) == (32, 2, 4)
    assert (tiny.dtype, tiny.device) == (torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 16, 17, 3, dtype=torch.uint8), "positive multiples of 2 .* got 16 x 17"),
        (torch.zeros(1, 3, 15, 16), "positive multiples of 2 .* got 15 x 16"),
        (torch.zeros(1, 0, 16, 3, dtype=torch.uint8), "positive multiples of 2 .* got 0 x 16"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"must have 3 channels, got 16"),
        (torch.zeros(1, 16, 16, 3), r"must have 3 channels, got 16"),
        (torch.zeros(16, 16, 3, dtype=torch.uint8), r"must be uint8 \[B, H, W, C\].*\(16, 16, 3\)"),
        (torch.zeros(1, 16, 16, 3, dtype=torch.int32), "got torch.int32"),
    ],
)
def test_unsuitable_images(tiny: VQModel, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.encode_indices(images)


def test_unsuitable_tokens(tiny: VQModel) -> None:
    with pytest.raises(ValueError, match=r"must be \[B, h, w\], got shape \(1, 16\)"):
        tiny.decode_indices(torch.zeros(1, 16, dtype=torch.int64))


@pytest.mark.parametrize("build", [VQModel, lambda: VQModel(VQModelConfig()), lambda: VQModel(act_fn="silu")])
def test_both_spellings_of_the_parameters(build: Callable[[], VQModel]) -> None:
    assert build().config == VQModelConfig()


def test_config_and_parameters_together() -> None:
    with pytest.raises(TypeError, match="or parameters, got both"):
        VQModel(VQModelConfig(), latent_channels=4)
