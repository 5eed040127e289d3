"""Our VQModel gives diffusers' results from diffusers' checkpoints.

Bounds. Both compute in float32, in another order (attention layout, the spatial norm's convolutions): a result may
differ by 1e-4 of the largest magnitude of the tensor. A token may differ only where the two nearest codes are closer,
in squared distance computed in float64, than 1e-5 of the vector's squared norm plus the longest code's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.model import weights_hash

BOUND = 1e-4
TIE_BOUND = 1e-5


def assert_close(ours: Tensor, reference: Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= BOUND * reference.abs().max()


def decided(vectors: Tensor, codes: Tensor) -> Tensor:
    """Which of `vectors` [N, D] are nearer to one code than to all others by more than rounding: bool [N]."""
    vectors, codes = vectors.double(), codes.double()
    nearest = (torch.cdist(vectors, codes) ** 2).topk(2, largest=False, dim=1).values
    scale = vectors.square().sum(1) + codes.square().sum(1).max()
    return nearest[:, 1] - nearest[:, 0] > TIE_BOUND * scale


def assert_same_results(pair: Any) -> Tensor:
    """Compares everything that both models compute; gives the share of tokens that rounding cannot decide."""
    reference, ours, images = pair
    with torch.no_grad():
        latents, own_latents = reference.encode(images).latents, ours.encode(images).latents
        assert_close(own_latents, latents)
        # From here on the same latents go in, so that a near tie cannot make the pictures differ.
        expected, result = reference.decode(latents), ours.decode(latents)
        tokens = reference.quantize(latents)[2][2]
        sure = decided(latents.permute(0, 2, 3, 1).flatten(0, 2), reference.quantize.embedding.weight)
        assert torch.equal(ours.encode_indices(images).flatten()[sure], tokens[sure])
        same = (ours.quantize.indices(latents).flatten() == tokens).view(len(images), -1).all(dim=1)
        assert_close(result.sample[same], expected.sample[same])
        assert (result.commit_loss - expected.commit_loss).abs() <= BOUND * expected.commit_loss.abs()
    return sure.float().mean()


def test_published_geometry(published_pair: Any) -> None:
    assert assert_same_results(published_pair) > 0.9
    tokens = published_pair.ours.encode_indices(published_pair.images)
    assert len(tokens.unique()) >= min(published_pair.ours.codebook_size, tokens.numel()) // 3


def test_published_geometry_has_the_same_keys(published_pair: Any) -> None:
    reference, ours, _ = published_pair
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in reference.state_dict().items()
    }


def test_forward_pass_and_plain_tuples(published_pair: Any) -> None:
    reference, ours, images = published_pair
    with torch.no_grad():
        ours_sample, ours_loss = ours(images[:2], return_dict=False)
        sample, loss = reference(images[:2], return_dict=False)
        assert_close(ours.encode(images[:2], return_dict=False)[0], reference.encode(images[:2], return_dict=False)[0])
    assert_close(ours_sample, sample)
    assert (ours_loss - loss).abs() <= BOUND * loss.abs()


def test_decoding_without_quantization(published_pair: Any) -> None:
    reference, ours, images = published_pair
    with torch.no_grad():
        latents = reference.encode(images).latents
        tokens = reference.quantize(latents)[2][2]
        shape = tuple(latents.permute(0, 2, 3, 1).shape)
        if ours.config.lookup_from_codebook:
            expected = reference.decode(tokens, force_not_quantize=True, shape=shape)
            result = ours.decode(tokens, force_not_quantize=True, shape=shape)
        else:
            expected = reference.decode(latents, force_not_quantize=True)
            result = ours.decode(latents, force_not_quantize=True)
    assert_close(result.sample, expected.sample)
    assert torch.equal(result.commit_loss, expected.commit_loss)


def test_decoded_tokens(published_pair: Any) -> None:
    reference, ours, images = published_pair
    with torch.no_grad():
        latents = reference.encode(images).latents
        codes, _, (_, _, tokens) = reference.quantize(latents)
        condition = codes if ours.config.norm_type == "spatial" else None
        expected = reference.decoder(reference.post_quant_conv(codes), condition).clamp(-1, 1)
    grid = tokens.view(len(images), *latents.shape[-2:])
    assert_close(ours.decode_indices(grid), expected)


def test_model_saved_by_us_loads_in_diffusers(published_pair: Any, tmp_path: Path) -> None:
    published_pair.ours.save_pretrained(tmp_path)
    loaded = diffusers.VQModel.from_pretrained(tmp_path)
    own = published_pair.ours.config.model_dump()
    assert {name: loaded.config[name] for name in own} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in own.items()
    }
    assert weights_hash(loaded.state_dict()) == weights_hash(published_pair.ours)


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """Small models over all switches."""
    levels = draw(st.integers(1, 3))
    spatial = draw(st.booleans())
    groups = draw(st.sampled_from([4, 8, 32]))
    unit = 32 if spatial else groups
    latent_channels = draw(st.integers(1, 8))
    attended = st.booleans()
    return {
        "in_channels": draw(st.sampled_from([1, 3])),
        "out_channels": draw(st.sampled_from([1, 3])),
        "block_out_channels": tuple(unit * draw(st.integers(1, 2)) for _ in range(levels)),
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if draw(attended) else "DownEncoderBlock2D" for _ in range(levels)
        ),
        "up_block_types": tuple(
            "AttnUpDecoderBlock2D" if draw(attended) else "UpDecoderBlock2D" for _ in range(levels)
        ),
        "layers_per_block": draw(st.integers(1, 2)),
        "act_fn": draw(st.sampled_from(["silu", "swish", "relu", "gelu", "mish"])),
        "latent_channels": latent_channels,
        "vq_embed_dim": latent_channels if spatial else draw(st.sampled_from([None, 2, 5])),
        "num_vq_embeddings": draw(st.integers(2, 64)),
        "norm_num_groups": groups,
        "norm_type": "spatial" if spatial else "group",
        "mid_block_add_attention": draw(st.booleans()),
        "lookup_from_codebook": draw(st.booleans()),
    }


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(parameters=geometries(), multiple=st.integers(2, 4))
def test_drawn_geometry(
    parameters: dict[str, Any],
    multiple: int,
    pair_of: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    side = multiple * 2 ** (len(parameters["block_out_channels"]) - 1)
    pair = pair_of(tmp_path_factory.mktemp("drawn"), parameters, side=side, batch=2)
    assert_same_results(pair)
