"""The models that are measured: published geometries with random weights, whose codes are latents of their own."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model import VQModel
from tests.support.commands import ROOT

ASSETS = ROOT / "jobs" / "assets"
DOWN, DOWN_ATTENDED, UP, UP_ATTENDED = (
    *("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    *("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
)
GEOMETRIES: dict[str, dict[str, Any]] = {
    "f16": {
        "block_out_channels": (128, 128, 256, 256, 512),
        "down_block_types": (DOWN,) * 4 + (DOWN_ATTENDED,),
        "up_block_types": (UP_ATTENDED,) + (UP,) * 4,
        "layers_per_block": 2,
        "latent_channels": 256,
        "num_vq_embeddings": 1024,
    },
    "vq-f4": {
        "block_out_channels": (128, 256, 512),
        "down_block_types": (DOWN,) * 3,
        "up_block_types": (UP,) * 3,
        "layers_per_block": 2,
        "latent_channels": 3,
        "num_vq_embeddings": 8192,
    },
    "aMUSEd": {
        "block_out_channels": (128, 256, 256, 512, 768),
        "down_block_types": (DOWN,) * 5,
        "up_block_types": (UP,) * 5,
        "layers_per_block": 2,
        "latent_channels": 64,
        "num_vq_embeddings": 8192,
        "mid_block_add_attention": False,
    },
    "MoVQ": {
        "block_out_channels": (128, 256, 256, 512),
        "down_block_types": (DOWN,) * 3 + (DOWN_ATTENDED,),
        "up_block_types": (UP_ATTENDED,) + (UP,) * 3,
        "layers_per_block": 2,
        "latent_channels": 4,
        "num_vq_embeddings": 16_384,
        "norm_type": "spatial",
    },
}
NAMES = (*GEOMETRIES, "demo")
JITTER = 0.05  # of the latents' spread, so that no two codes are equal


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        size: side of the images (pixels).
        images: real ones, for agreement.
        shrink: divides the channels.
        batches: sizes that are measured.
        matrix: side of the matrix product that the machine is measured by.
        seconds: of one rate.
    """

    size: int = 256
    images: int = 64
    shrink: int = 1
    batches: tuple[int, ...] = (8, 32, 128, 512)
    matrix: int = 8192
    seconds: float = 1.5


QUICK = Scale(images=32, batches=(32, 128), seconds=1.0)
TINY = Scale(size=32, images=4, shrink=4, batches=(2,), matrix=128, seconds=0.0)


@cache
def photographs(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Cuts of the demo's photographs: uint8 [count, size, size, 3]."""
    lots, files = np.random.default_rng(seed), sorted((ASSETS / "photos").glob("*.jpg"))
    cuts = []
    while len(cuts) < count:
        with Image.open(files[lots.integers(len(files))]) as photo:
            photo.draft("RGB", (4 * size, 4 * size))  # a fraction of a large file's resolution, and of its time
            side = int(lots.integers(min(size, *photo.size), min(photo.size) + 1))
            left, top = (int(lots.integers(0, length - side + 1)) for length in photo.size)
            cut = photo.convert("RGB").resize((size, size), box=(left, top, left + side, top + side))
            cuts.append(np.asarray(cut))
    return np.stack(cuts)


@torch.no_grad()
def build(name: str, scale: Scale, device: str) -> VQModel:
    """A model on the device, in float32."""
    if name == "demo":
        return VQModel.from_pretrained(ASSETS / "vq-f8-1024").to(device)
    parameters = dict(GEOMETRIES[name])
    parameters["block_out_channels"] = tuple(width // scale.shrink for width in parameters["block_out_channels"])
    parameters["num_vq_embeddings"] //= scale.shrink**2
    torch.manual_seed(0)
    model = VQModel(**parameters).to(device).eval()
    vectors = torch.cat(list(_latents(model, scale, device)))
    picks = torch.randint(len(vectors), (model.codebook_size,), device=device)
    jitter = torch.randn(model.codebook_size, model.embed_dim, device=device) * vectors.std(dim=0) * JITTER
    model.quantize.embedding.weight.copy_(vectors[picks] + jitter)
    return model


def _latents(model: VQModel, scale: Scale, device: str) -> Iterator[torch.Tensor]:
    images = torch.from_numpy(photographs(max(4, scale.images // 4), scale.size, seed=1))
    for some in images.split(4):
        yield model.encode_latents(some.to(device)).permute(0, 2, 3, 1).flatten(0, 2)


def gigaflops(model: VQModel, scale: Scale, device: str) -> float:
    """Arithmetic of the encoder for one image, as torch counts it (without the search for the nearest code)."""
    image = torch.from_numpy(photographs(1, scale.size)).to(device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode_latents(image)
    return counter.get_total_flops() / 1e9
