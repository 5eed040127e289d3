"""Networks that compare images, with random weights: VGG16 with LPIPS's heads, and a stand-in for Inception."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

# Convolutions of torchvision.models.vgg16().features: number -> channels out.
LAYOUT = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256} | dict.fromkeys((17, 19, 21, 24, 26, 28), 512)


@cache
def vgg16_weights() -> dict[str, Tensor]:
    """As torchvision names them."""
    generator = torch.Generator().manual_seed(0)
    weights = {"classifier.6.bias": torch.zeros(1000)}
    for before, (number, width) in zip([3, *LAYOUT.values()], LAYOUT.items(), strict=False):
        scale = (2 / (9 * before)) ** 0.5
        weights[f"features.{number}.weight"] = torch.randn(width, before, 3, 3, generator=generator) * scale
        weights[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.1
    return weights


def lpips_heads() -> dict[str, Tensor]:
    """As LPIPS v0.1 names them."""
    generator = torch.Generator().manual_seed(1)
    widths = (64, 128, 256, 512, 512)
    return {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for n, c in enumerate(widths)}


def save_weights(path: Path, weights: dict[str, Tensor | None]) -> Path:
    """Write all but those that are None."""
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path)
    return path


class Colours(nn.Module):
    """Mean and spread of the three channels, as `return_features`; else something of another width."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert images.dtype == torch.uint8
        planes = images.float().div(255).flatten(2)
        if return_features:
            return torch.cat([planes.mean(2), planes.std(2)], dim=1)
        return planes.mean(2)


class Plain(nn.Module):
    """What a file may hold instead: some of its outputs are no features."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "planes":
            return images.float()
        if self.kind == "wide":
            return images.float().flatten(1)
        return images.float().mean((2, 3))


def save_script(path: Path, module: nn.Module) -> dict[str, Any]:
    """Write TorchScript; returns the settings of QA that name it."""
    torch.jit.save(torch.jit.script(module), path)
    return {"inception_weights": path, "inception_sha256": sha256(path)}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
