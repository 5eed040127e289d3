"""The smallest whole tokenizer: a patch's token is its brightness, in steps that the weights tell."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from pipeline.encoding import ModelConfig, ValueRange
from pipeline.model import Tokenizer


class BrightnessTokenizer(Tokenizer):
    """Patches of `patch` x `patch` pixels to the nearest of some levels of brightness."""

    def __init__(self, patch: int, levels: Tensor, value_range: ValueRange) -> None:
        super().__init__(value_range)
        self.patch = patch
        self.register_buffer("levels", levels)

    @property
    def codebook_size(self) -> int:
        return len(self.levels)

    @property
    def downsample(self) -> int:
        return self.patch

    def describe(self) -> dict[str, Any]:
        return {"family": "BrightnessTokenizer", "patch": self.patch}

    def to_latents(self, pixels: Tensor) -> Tensor:
        return avg_pool2d(pixels.mean(dim=1, keepdim=True), self.patch)

    def to_indices(self, latents: Tensor) -> Tensor:
        return (latents.float().movedim(1, -1) - self.levels).abs().argmin(dim=-1)

    def to_images(self, indices: Tensor) -> Tensor:
        return interpolate(self.levels[indices].unsqueeze(1), scale_factor=self.patch).expand(-1, 3, -1, -1)


def load(folder: Path, config: ModelConfig) -> BrightnessTokenizer:
    """What the entry point names."""
    patch = json.loads((folder / "config.json").read_text())["patch"]
    levels: torch.Tensor = load_file(folder / "levels.safetensors")["levels"]
    return BrightnessTokenizer(patch, levels, config.value_range).eval()
