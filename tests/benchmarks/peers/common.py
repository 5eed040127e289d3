"""What both peers share: diffusers' model as documented, and torchvision's Resize and CenterCrop on Pillow images.

The pixels equal those of our `center-crop` bit for bit, so the tokens can be compared.
"""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

BATCH = {"cpu": 32, "cuda": 128}  # on a CPU both peers were measured fastest near it


def decode(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """A JPEG as uint8 [size, size, 3]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short, long = sorted(image.size)
    other = int(size * long / short)
    image = image.resize((size, other) if image.width <= image.height else (other, size), Image.Resampling.BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def device() -> str:
    """`cuda` where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load(folder: str, *, tricks: bool = False) -> Any:
    """The model in eval mode, in float32; with every standard trick: float16, channels_last, on a GPU torch.compile."""
    import torch
    from diffusers import VQModel

    model = VQModel.from_pretrained(folder).eval().to(device())
    if tricks:
        for part in (model.encoder, model.quant_conv):
            part.to(dtype=torch.float16, memory_format=torch.channels_last)
        if device() == "cuda":
            model.encoder = torch.compile(model.encoder, dynamic=False)
    return model


def encode(model: Any, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Tokens [n, h * w] of images [n, size, size, 3]."""
    import torch

    half, on_gpu = model.quant_conv.weight.dtype is torch.float16, device() == "cuda"
    with torch.inference_mode():
        pixels = torch.from_numpy(images)
        if half and len(images) < BATCH[device()]:  # a shape of its own would be compiled anew
            pixels = torch.nn.functional.pad(pixels, (0, 0) * 3 + (0, BATCH[device()] - len(images)))
        if half and on_gpu:
            pixels = pixels.pin_memory()
        pixels = pixels.to(device(), non_blocking=True).permute(0, 3, 1, 2).to(model.quant_conv.weight.dtype)
        pixels = pixels.div_(127.5).sub_(1)
        if half:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        indices = model.quantize(model.encode(pixels).latents.float())[2][2]
        return indices.view(len(pixels), -1)[: len(images)].to(torch.int32).cpu().numpy()
