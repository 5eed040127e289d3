"""Tiny models of random weights of every family, as folders; codes are drawn from their own latents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.checkpoint import write_folder
from pipeline.tokenizers.formulas import Formula, Fsq, Lfq

DOWNSAMPLE = 4
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ChameleonVQVAE": {"num_embeddings": 64, "resolution": 32, "attn_resolutions": [8], "embed_dim": 4},
    "Emu3VQVAE": {"codebook_size": 70_000, "attn_resolutions": [2], "latent_channels": 4, "hidden_size": 64},
    "JanusVQVAE": {"num_embeddings": 64, "embed_dim": 4, "num_patches": 8},
}
GEOMETRY = {"base_channels": 32, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "latent_channels": 8}


def transformers_vq(name: str, **geometry: Any) -> Any:
    """One of transformers' own models."""
    import transformers

    torch.manual_seed(1)
    kind = getattr(transformers, name)
    vq = kind(kind.config_class(**GEOMETRY | TRANSFORMERS[name] | geometry)).eval()
    with torch.no_grad():
        latents = _latents(vq, torch.rand(4, 3, 64, 64) * 2 - 1)
        codes = vq.quantize.embedding.weight
        codes[: len(latents)] = latents[torch.randperm(len(latents))][: len(codes)]
    return vq


def save_transformers(name: str, folder: Path, **geometry: Any) -> Path:
    """As `save_pretrained` writes it."""
    vq = transformers_vq(name, **geometry)
    document = {**vq.config.to_dict(), "architectures": [name]}
    write_folder(folder, document, vq.state_dict(), "model")
    return folder


def emu3_f8(folder: Path) -> Path:
    """Emu3's tokenizer with as many pixels to a token as the published one has, and one frame to a clip."""
    small = {"codebook_size": 512, "hidden_size": 32, "temporal_downsample_factor": 1}
    layers = {"channel_multiplier": [1, 1, 1, 1], "attn_resolutions": [3]}
    return save_transformers("Emu3VQVAE", folder, **small, **layers)


def _latents(vq: Any, images: Tensor) -> Tensor:
    if type(vq).__name__ == "Emu3VQVAE":
        frames = vq.config.temporal_downsample_factor
        features = vq.encoder(images.unsqueeze(1).repeat(1, frames, 1, 1, 1)).permute(0, 2, 1, 3, 4)
        return vq.quant_conv(features)[:, :, 0].permute(0, 2, 3, 1).flatten(0, 2)
    return vq.quant_conv(vq.encoder(images)).permute(0, 2, 3, 1).flatten(0, 2)


class CosmosLike(nn.Module):
    """Patches to channels and a 1x1 convolution; gives (indices, codes, loss) as Cosmos's encoder.jit does."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, len(levels), DOWNSAMPLE, DOWNSAMPLE)
        self.register_buffer(
            "middle", torch.tensor([level // 2 for level in levels]).view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer("levels", torch.tensor(levels).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        digits = ((self.layer(images * 2).tanh() + 1) / 2 * (self.levels - 1)).round()
        codes = (digits - self.middle) / self.middle
        places = torch.cat([torch.ones_like(self.levels[:, :1]), self.levels[:, :-1].cumprod(1)], 1)
        return (digits * places).sum(1).int(), codes.to(torch.bfloat16), codes.mean()


class FromIndices(nn.Module):
    """Indices to images: a code of its own for each digit."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.ConvTranspose2d(len(levels), 3, DOWNSAMPLE, DOWNSAMPLE)
        places = [1]
        for level in levels[:-1]:
            places.append(places[-1] * level)
        self.register_buffer("places", torch.tensor(places).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("levels", torch.tensor(levels).view(1, -1, 1, 1), persistent=False)

    def forward(self, indices: Tensor) -> Tensor:
        digits = indices.unsqueeze(1) // self.places % self.levels
        return self.layer(digits / self.levels)


def save_scripted(kind: str, folder: Path) -> Path:
    """`cosmos`: codes and indices, as Cosmos exports them. `magvit`: latents of 18 bits."""
    torch.manual_seed(2)
    levels = (8, 8, 8, 5, 5, 5)
    modules: tuple[nn.Module, nn.Module]
    document: dict[str, Any] = {"_class_name": "TorchScriptTokenizer", "downsample": DOWNSAMPLE}
    if kind == "cosmos":
        modules = CosmosLike(levels), FromIndices(levels)
        document |= {"quantizer": "fsq", "levels": levels, "encoder_gives": "codes", "encoder_output": 1}
        document |= {"decoder_takes": "indices"}
    else:
        modules = nn.Conv2d(3, 18, DOWNSAMPLE, DOWNSAMPLE), nn.ConvTranspose2d(18, 3, DOWNSAMPLE, DOWNSAMPLE)
        document |= {"quantizer": "lfq", "bits": 18}
    write_folder(folder, document, {}, "none")
    (folder / "none.safetensors").unlink()
    for module, name in zip(modules, ("encoder.jit", "decoder.jit"), strict=True):
        torch.jit.script(module.eval()).save(str(folder / name))
    return folder


FORMULAS: dict[str, Formula] = {"cosmos": Fsq((8, 8, 8, 5, 5, 5)), "magvit": Lfq(18)}
FAMILIES: dict[str, Callable[[Path], Path]] = {
    **{name: lambda folder, name=name: save_transformers(name, folder) for name in TRANSFORMERS},
    **{kind: lambda folder, kind=kind: save_scripted(kind, folder) for kind in FORMULAS},
}
