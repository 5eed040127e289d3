"""LPIPS: a perceptual distance on VGG16 features (Zhang et al. 2018, 1801.03924).

The features of five layers are scaled to unit length per position; the distance is their squared difference, weighted
and summed over channels, averaged over positions, summed over layers. The weights of the channels are LPIPS's learned
heads if the file holds them, else one: the paper's uncalibrated variant, good enough as a term of a loss. The file is
local, and never downloaded.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, normalize, relu

from pipeline.errors import UsageError

# VGG16's convolutions as torchvision numbers them, `features.<n>`. Each block but the first begins by halving the
# sides; its last output is compared (relu1_2, 2_2, 3_3, 4_3, 5_3).
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
CHANNELS = (64, 128, 256, 512, 512)
HEADS = tuple(f"lin{number}.model.1.weight" for number in range(len(BLOCKS)))  # as LPIPS v0.1 names them
SMALLEST_SIDE = 16  # pixels; the sides are halved four times
# Of ImageNet's pixels in [0, 1]: what VGG16 was trained with.
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PerceptualDistance(nn.Module):
    """Distance of two batches of images, zero for equal ones; its weights do not learn.

    Args:
        path: a safetensors file with `features.0.weight`, `features.0.bias`, ... of torchvision's VGG16, and
            `lin0.model.1.weight` [1, C, 1, 1], ... of LPIPS v0.1 (vgg), or none of these; other tensors in it (the
            classifier) are not read.

    Attributes:
        is_lpips: whether the file holds the learned heads.

    Raises:
        UsageError: the file cannot be read, or a tensor is missing or of another shape.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        before = 3
        for numbers, width in zip(BLOCKS, CHANNELS, strict=True):
            for number in numbers:
                self.features[str(number)] = nn.Conv2d(before, width, 3, padding=1, device="meta")  # not yet anywhere
                before = width
        heads = {name: torch.ones(1, width, 1, 1) for name, width in zip(HEADS, CHANNELS, strict=True)}
        found = _read(path, {**self.state_dict(), **heads})
        self.is_lpips = HEADS[0] in found
        for number, name in enumerate(HEADS):
            self.register_buffer(f"head{number}", found.pop(name, heads[name]), persistent=False)
        self.load_state_dict(found, assign=True)
        self.requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """The distances [B] of `images` and `others` [B, 3, H, W] in [-1, 1]; sides of at least `SMALLEST_SIDE`."""
        distances = torch.zeros(len(images), device=images.device)
        first, second = self._scaled(images), self._scaled(others)
        for number, block in enumerate(BLOCKS):
            first, second = self._block(first, number, block), self._block(second, number, block)
            difference = normalize(first.float(), dim=1) - normalize(second.float(), dim=1)
            head = self.get_buffer(f"head{number}")
            distances = distances + (head * difference.square()).sum(dim=1).mean(dim=(1, 2))
        return distances

    def _block(self, x: Tensor, number: int, block: tuple[int, ...]) -> Tensor:
        if number:
            x = max_pool2d(x, 2)
        for convolution in block:
            x = relu(self.features[str(convolution)](x))
        return x

    @staticmethod
    def _scaled(images: Tensor) -> Tensor:
        mean, spread = (images.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _SPREAD))
        return (images.add(1).div(2) - mean) / spread


def _read(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named in `wanted`: all of them, or all but the heads."""
    try:
        file: Any
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name).float() for name in file.keys() if name in wanted}  # noqa: SIM118
    except (OSError, SafetensorError) as exc:
        raise UsageError(f"{path}: must be VGG16 weights as safetensors, and cannot be read: {exc}") from exc
    needed = [name for name in wanted if name not in HEADS or not found.keys().isdisjoint(HEADS)]
    wrong = [name for name in needed if name not in found or found[name].shape != wanted[name].shape]
    if wrong:
        raise UsageError(
            f"{path}: must hold VGG16 weights under torchvision's names, and LPIPS's heads all or none, but these are "
            f"missing or of another shape: {', '.join(wrong[:6])}{' and more' if len(wrong) > 6 else ''}"
        )
    return found
