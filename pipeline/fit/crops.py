"""Random crops of a pool of images."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.fit.config import FitConfig
from pipeline.fit.team import Team
from pipeline.model import normalise

UINT8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Cut:
    """One crop, drawn but not cut: the box (left, top, right, bottom) in pixels of the image, then turn and mirror."""

    image: Image.Image
    box: tuple[float, float, float, float]
    quarter_turns: int
    mirror: bool

    def pixels(self, side: int) -> UINT8:
        crop: UINT8 = np.asarray(self.image.resize((side, side), Image.Resampling.BICUBIC, box=self.box))
        turned = np.rot90(crop, self.quarter_turns)
        return turned[:, ::-1] if self.mirror else turned


class CropSource:
    """Random crops of a pool of images: scale, position, the eight symmetries of the square, colour.

    Every worker draws the crops of the whole team and cuts its own slice: however many there are, a step sees the same
    crops.

    Args:
        images: uint8 [H, W, 3]; the first `pool_images` that are large enough are kept.
        config: sizes, seed.
        team: who shares the crops.

    Raises:
        UsageError: no image is large enough for the crops.
    """

    def __init__(self, images: Iterable[UINT8], config: FitConfig, team: Team | None = None) -> None:
        self._config = config
        self._team = team or Team()
        self._rng = np.random.default_rng(config.seed)
        self._pool: list[Image.Image] = []
        for pixels in images:
            if len(self._pool) == config.pool_images:
                break
            image = Image.fromarray(pixels)
            if min(image.size) >= max(config.crop, config.final_crop):
                self._pool.append(_shrunk(image, config.max_short_side))
        if not self._pool:
            raise UsageError(
                f"images to train on must have a short side of at least {max(config.crop, config.final_crop)} pixels, "
                "got none"
            )

    def batch(self, side: int) -> Tensor:
        """This worker's crops of the next step: float32 [B, 3, side, side] in [-1, 1]."""
        count = self._config.crops_of(side)
        own = self._team.slice_of(count)
        cuts = [self._draw(side) for _ in range(count)][own]
        crops = normalise(torch.from_numpy(np.stack([cut.pixels(side) for cut in cuts])))
        return self._jitter(crops, count, own)

    def middles(self, side: int, count: int) -> list[UINT8]:
        """The middle squares of the first `count` images, scaled to `side`: uint8 [side, side, 3]."""
        squares = []
        for image in self._pool[:count]:
            short = min(image.size)
            left, top = ((length - short) / 2 for length in image.size)
            box = (left, top, left + short, top + short)
            squares.append(np.array(image.resize((side, side), Image.Resampling.BICUBIC, box=box)))
        return squares

    @cached_property
    def digest(self) -> str:
        """Identity of the pool: 64 hex digits of SHA-256 over its pixels."""
        digest = hashlib.sha256()
        for image in self._pool:
            digest.update(f"{image.size}\n".encode())
            digest.update(image.tobytes())
        return digest.hexdigest()

    def state(self) -> dict[str, Any]:
        """Where the random numbers are, as JSON."""
        return dict(self._rng.bit_generator.state)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to where `state` was taken."""
        self._rng.bit_generator.state = state

    def _draw(self, side: int) -> _Cut:
        image = self._pool[self._rng.integers(len(self._pool))]
        short = min(image.size)
        low = min(self._config.min_short_side, short)
        high = min(self._config.max_short_side, short)
        box_side = side * short / math.exp(self._rng.uniform(math.log(low), math.log(high)))
        left, top = (self._rng.uniform(0, length - box_side) for length in image.size)
        box = (left, top, left + box_side, top + box_side)
        return _Cut(image, box, int(self._rng.integers(4)), self._rng.random() < 0.5)

    def _jitter(self, crops: Tensor, count: int, own: slice) -> Tensor:
        """A random colour matrix near the identity, and an offset, per crop: brightness, contrast, saturation, hue."""
        if not self._config.color_jitter:
            return crops
        change = self._rng.uniform(-1, 1, (count, 3, 4)).astype(np.float32) * self._config.color_jitter
        matrix = torch.from_numpy(change[own])
        colored = torch.einsum("bchw,bdc->bdhw", crops, torch.eye(3) + matrix[:, :, :3]) + matrix[:, :, 3:, None]
        return colored.clamp_(-1, 1)


def _shrunk(image: Image.Image, short_side: int) -> Image.Image:
    """The image with at most this short side: the pool stays small, and crops need not read the full photograph."""
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
