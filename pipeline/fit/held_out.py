"""How good the model is on images that it does not train on, in figures and to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.fit.crops import UINT8
from pipeline.model import VQModel, denormalise
from pipeline.qa.statistics import psnr

STRIP_IMAGES = 8
_GAP = 4  # pixels


def reconstruct(model: VQModel, image: UINT8) -> tuple[UINT8, torch.Tensor]:
    """`image` uint8 [H, W, 3] through the tokens and back, as a run would store them; and the tokens [h * w]."""
    pixels = torch.from_numpy(image)[None].to(model.device)
    indices = model.encode_indices(pixels)
    decoded: UINT8 = denormalise(model.decode_indices(indices))[0].cpu().numpy()
    return decoded, indices.flatten().cpu()


def measure(model: VQModel, images: Sequence[UINT8]) -> tuple[float, float]:
    """Mean PSNR (dB, peak 255) over `images` uint8 [H, W, 3], and the part of the codes they use, in [0, 1]."""
    psnrs, used = [], torch.zeros(model.codebook_size, dtype=torch.bool)
    for image in images:
        decoded, indices = reconstruct(model, image)
        psnrs.append(psnr(image, decoded))
        used[indices] = True
    return float(np.mean(psnrs)), used.float().mean().item()


def draw_strip(model: VQModel, images: Sequence[UINT8], path: Path) -> None:
    """A PNG: the first images, uint8 [side, side, 3], above their reconstructions. It appears whole or not at all."""
    shown = images[:STRIP_IMAGES]
    side = len(shown[0])
    strip = Image.new("RGB", (len(shown) * (side + _GAP) - _GAP, 2 * side + _GAP), "white")
    for number, image in enumerate(shown):
        strip.paste(Image.fromarray(image), (number * (side + _GAP), 0))
        strip.paste(Image.fromarray(reconstruct(model, image)[0]), (number * (side + _GAP), side + _GAP))
    temporary = path.with_suffix(".tmp")
    strip.save(temporary, format="PNG")
    temporary.replace(path)
