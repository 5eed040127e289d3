"""Pairs of models with the same weights: diffusers' own VQModel, the reference, and ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
from torch import Tensor

from pipeline.model import VQModel

DOWN, DOWN_ATTENDED = "DownEncoderBlock2D", "AttnDownEncoderBlock2D"
UP, UP_ATTENDED = "UpDecoderBlock2D", "AttnUpDecoderBlock2D"

# Geometries of published checkpoints with narrower layers and smaller codebooks; every other switch as published.
PUBLISHED: dict[str, dict[str, Any]] = {
    "diffusers defaults": {},
    "taming f16": {
        "block_out_channels": (32, 32, 64, 64, 128),
        "down_block_types": (DOWN, DOWN, DOWN, DOWN, DOWN_ATTENDED),
        "up_block_types": (UP_ATTENDED, UP, UP, UP, UP),
        "layers_per_block": 2,
        "latent_channels": 64,
        "num_vq_embeddings": 128,
    },
    "LDM vq-f4": {
        "block_out_channels": (32, 64, 128),
        "down_block_types": (DOWN,) * 3,
        "up_block_types": (UP,) * 3,
        "layers_per_block": 2,
        "latent_channels": 3,
        "num_vq_embeddings": 512,
    },
    "aMUSEd": {
        "block_out_channels": (32, 64, 64, 96, 128),
        "down_block_types": (DOWN,) * 5,
        "up_block_types": (UP,) * 5,
        "layers_per_block": 2,
        "latent_channels": 64,
        "num_vq_embeddings": 128,
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
        "force_upcast": True,
    },
    "Kandinsky MoVQ": {
        "block_out_channels": (32, 64, 64, 128),
        "down_block_types": (DOWN, DOWN, DOWN, DOWN_ATTENDED),
        "up_block_types": (UP_ATTENDED, UP, UP, UP),
        "layers_per_block": 2,
        "latent_channels": 4,
        "num_vq_embeddings": 256,
        "norm_type": "spatial",
    },
    "VQ-Diffusion": {
        "block_out_channels": (32, 32, 64, 128),
        "down_block_types": (DOWN, DOWN, DOWN, DOWN_ATTENDED),
        "up_block_types": (UP_ATTENDED, UP, UP, UP),
        "layers_per_block": 2,
        "latent_channels": 32,
        "vq_embed_dim": 16,
        "num_vq_embeddings": 256,
    },
}


class Pair(NamedTuple):
    """Two models with the same weights, and images [B, 3, H, W] in [-1, 1] for them."""

    reference: diffusers.VQModel
    ours: VQModel
    images: Tensor


def make_pair(folder: Path, parameters: dict[str, Any], side: int = 64, batch: int = 8) -> Pair:
    """Both models as loaded from one folder that diffusers saved; the codes are the model's own latents of noise."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = diffusers.VQModel(**parameters).eval()
    images = torch.rand(batch, model.config.in_channels, side, side, generator=generator) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images).latents.permute(0, 2, 3, 1).flatten(0, 2)
        picks = torch.randint(len(latents), (model.config.num_vq_embeddings,), generator=generator)
        jitter = torch.randn(len(picks), latents.shape[1], generator=generator) * latents.std() * 0.05
        model.quantize.embedding.weight.copy_(latents[picks] + jitter)
    model.save_pretrained(folder)
    return Pair(diffusers.VQModel.from_pretrained(folder).eval(), VQModel.from_pretrained(folder), images)


@pytest.fixture(scope="module", params=list(PUBLISHED))
def published_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    parameters = PUBLISHED[request.param]
    side = min(64, 16 * 2 ** (len(parameters.get("block_out_channels", (64,))) - 1))
    return make_pair(tmp_path_factory.mktemp("published"), parameters, side)


@pytest.fixture(scope="session")
def pair_of() -> Callable[..., Pair]:
    return make_pair


@pytest.fixture(scope="session")
def tiny() -> VQModel:
    """A model of two levels with attention whose codes are spread enough that noise uses many of them."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = VQModel(
            block_out_channels=(8, 16),
            down_block_types=(DOWN, DOWN_ATTENDED),
            up_block_types=(UP_ATTENDED, UP),
            norm_num_groups=4,
            latent_channels=4,
            num_vq_embeddings=32,
        ).eval()
        with torch.no_grad():
            latents = model.encode(torch.rand(4, 3, 16, 16) * 2 - 1)[0].permute(0, 2, 3, 1).flatten(0, 2)
            model.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:32]])
    return model


@pytest.fixture
def tiny_folder(tiny: VQModel, tmp_path: Path) -> Path:
    tiny.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"
