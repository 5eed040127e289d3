"""What both peers share: diffusers' model as documented, and torchvision's Resize and CenterCrop on Pillow images.

The pixels equal those of our `center-crop` bit for bit, so the tokens can be compared.
"""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

BATCH = 32  # both peers were measured fastest near it


def decode(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """A JPEG as uint8 [size, size, 3]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short, long = sorted(image.size)
    other = int(size * long / short)
    image = image.resize((size, other) if image.width <= image.height else (other, size), Image.Resampling.BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def load(folder: str) -> Any:
    """The model in eval mode."""
    from diffusers import VQModel

    return VQModel.from_pretrained(folder).eval()


def encode(model: Any, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
    """Tokens [n, h * w] of images [n, size, size, 3]."""
    import torch

    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        indices = model.quantize(model.encode(pixels).latents)[2][2]
        return indices.view(len(images), -1).to(torch.int16).numpy()
