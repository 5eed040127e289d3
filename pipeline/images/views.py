"""What a recipe gives, and the few cuts that several of them share."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.errors import Stage
from pipeline.images.config import ImageConfig
from pipeline.images.pictures import Picture, Pixels
from pipeline.images.reasons import BadImage, Reason

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One cut of a sample.

    Attributes:
        pixels: uint8 [height, width, 3], RGB, C-contiguous, owned by this view.
        crop: top, left, height, width in pixels of the source after EXIF rotation, before a flip; the padding of `pad`
            lies outside of the source, so top and left may be negative.
        flip: mirrored left to right.
        index: position among the sample's views.
    """

    pixels: Pixels
    crop: Box
    flip: bool = False
    index: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """Chance that depends on the sample alone: not on the order, the worker, or other samples.

    Attributes:
        seed: of the run.
        key: of the sample.
    """

    seed: int = 0
    key: str = ""

    def __call__(self, view: int) -> random.Random:
        """The generator of one view; of its methods `random` alone gives the same numbers on every Python."""
        key = self.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # as rows spell it
        return random.Random(f"{self.seed}/{view}/{key}")  # noqa: S311 - no secrets


Recipe = Callable[[Picture, ImageConfig, Draw], tuple[View, ...]]


def below(rng: random.Random, count: int) -> int:
    """An integer in [0, count), all of them equally likely."""
    return int(rng.random() * count)


def flipped(pixels: Pixels) -> Pixels:
    """Mirrored left to right, in memory of its own."""
    return np.ascontiguousarray(pixels[:, ::-1])


def shorter_side_to(picture: Picture, size: int, config: ImageConfig) -> Picture:
    """torchvision's `Resize(size)`: the shorter side becomes `size`, the longer one is rounded down.

    Raises:
        BadImage: `too_large`, if the image is so long that the resized one would exceed `max_pixels`.
    """
    short, long = sorted((picture.height, picture.width))
    height, width = size, int(size * long / short)
    if picture.width <= picture.height:
        height, width = width, height
    check_between(picture, height, width, config)
    return picture.resized(height, width, config.filter)


def check_between(picture: Picture, height: int, width: int, config: ImageConfig) -> None:
    """Refuse a size in between that is too large.

    Raises:
        BadImage: `too_large`.
    """
    if height * width > config.max_pixels:
        short, long = sorted((height, width))
        detail = f"{picture.width} x {picture.height} pixels: an aspect so long needs {short} x {long} in between"
        limit = f"must be at most {config.max_pixels} pixels (image.max_pixels)"
        raise BadImage(Reason.TOO_LARGE, f"{detail}; {limit}", Stage.PREPROCESS)


def source_box(source: Picture, resized: Picture, top: int, left: int, size: int) -> Box:
    """A square of the resized image, in pixels of the source."""
    down, right = source.height / resized.height, source.width / resized.width
    return (top * down, left * right, size * down, size * right)
