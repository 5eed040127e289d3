"""A perceptual distance on VGG16 features, as in LPIPS (Zhang et al. 2018, 1801.03924) without its learned weights.

The features of five layers are scaled to unit length per position; the distance is their squared difference, summed
over channels, averaged over positions, summed over layers (the paper's uncalibrated variant). The weights come from a
local file, and are never downloaded.
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
_CHANNELS = (64, 128, 256, 512, 512)
# Of ImageNet's pixels in [0, 1]: what VGG16 was trained with.
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PerceptualDistance(nn.Module):
    """Distance of two batches of images, zero for equal ones; its weights do not learn.

    Args:
        path: a safetensors file with `features.0.weight`, `features.0.bias`, ... of torchvision's VGG16; other tensors
            in it (the classifier) are not read.

    Raises:
        UsageError: the file cannot be read, or a tensor is missing or of another shape.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        channels = 3
        for numbers, width in zip(BLOCKS, _CHANNELS, strict=True):
            for number in numbers:
                self.features[str(number)] = nn.Conv2d(channels, width, 3, padding=1)
                channels = width
        self.load_state_dict(_read(path, self.state_dict()))
        self.requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """The mean distance, a scalar, of `images` and `others` [B, 3, H, W] in [-1, 1]; sides of at least 16."""
        distance = torch.zeros((), device=images.device)
        first, second = self._scaled(images), self._scaled(others)
        for number, block in enumerate(BLOCKS):
            first, second = self._block(first, number, block), self._block(second, number, block)
            difference = normalize(first.float(), dim=1) - normalize(second.float(), dim=1)
            distance = distance + difference.square().sum(dim=1).mean()
        return distance

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
    try:
        file: Any
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name).float() for name in file.keys() if name in wanted}  # noqa: SIM118
    except (OSError, SafetensorError) as exc:
        raise UsageError(
            f"perceptual_file={path}: must be VGG16 weights as safetensors, and cannot be read: {exc}"
        ) from exc
    wrong = [name for name, own in wanted.items() if name not in found or found[name].shape != own.shape]
    if wrong:
        raise UsageError(
            f"perceptual_file={path}: must hold VGG16 weights under torchvision's names, but these are missing or of "
            f"another shape: {', '.join(wrong[:6])}{' and more' if len(wrong) > 6 else ''}"
        )
    return found
