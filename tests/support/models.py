"""Tiny real models."""

from pathlib import Path

import torch

from pipeline.model import VQModel


def save_tiny_model(folder: Path, *, seed: int = 0, codes: int = 64) -> Path:
    """Save an f4 model of random weights whose codes are drawn from its own latents, so that many are used."""
    torch.manual_seed(seed)
    model = VQModel(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        num_vq_embeddings=codes,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()
    with torch.no_grad():
        latents = model.encode(torch.rand(4, 3, 64, 64) * 2 - 1)[0]
        vectors = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
        model.quantize.embedding.weight.copy_(vectors[torch.randperm(len(vectors))[:codes]])
    model.save_pretrained(folder)
    return folder
