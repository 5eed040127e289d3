"""Recipes: from an upright RGB image to the square views that the model sees, each with its crop box in the source.

A recipe is a function; its name in `RECIPES` is what `image.recipe` says. What it does is a contract with the tokens
already made: a recipe that must change gets a new name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from pipeline.errors import Stage
from pipeline.images.config import ImageConfig
from pipeline.images.pictures import Picture, Pixels
from pipeline.images.reasons import BadImage, Reason

Box = tuple[float, float, float, float]
_WHITE: Final = 255


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One square crop of a sample.

    Attributes:
        pixels: uint8 [size, size, 3], RGB, C-contiguous, owned by this view.
        crop: top, left, height, width in pixels of the source after EXIF rotation; the padding of `pad` lies outside
            of the source, so top and left may be negative.
        flip: mirrored left to right.
        index: position among the sample's views.
    """

    pixels: Pixels
    crop: Box
    flip: bool = False
    index: int = 0


Recipe = Callable[[Picture, ImageConfig], tuple[View, ...]]


def center_crop(picture: Picture, config: ImageConfig) -> tuple[View, ...]:
    """Shorter side to `size`, then the middle square: torchvision's `Resize(size)`, `CenterCrop(size)` on PIL images.

    The resize is whole and the crop comes after: resizing the crop box alone is faster, and changes 1 % of the pixels.

    Raises:
        BadImage: `too_large`, if the image is so long that the resized one would exceed `max_pixels`.
    """
    size = config.size
    short, long = sorted((picture.height, picture.width))
    long_resized = int(size * long / short)
    if size * long_resized > config.max_pixels:
        detail = (
            f"{picture.width} x {picture.height} pixels: an aspect so long needs {size} x {long_resized} in between"
        )
        limit = f"must be at most {config.max_pixels} pixels (image.max_pixels)"
        raise BadImage(Reason.TOO_LARGE, f"{detail}; {limit}", Stage.PREPROCESS)
    height, width = (long_resized, size) if picture.width <= picture.height else (size, long_resized)
    resized = picture.resized(height, width, config.interpolation)
    top = round((height - size) / 2)
    left = round((width - size) / 2)
    square = resized.cropped(top, left, size, size)
    return (View(square.pixels(), _source_box(picture, resized, top, left, size)),)


def resize_exact(picture: Picture, config: ImageConfig) -> tuple[View, ...]:
    """Both sides to `size`, the aspect ignored: torchvision's `Resize((size, size))` on PIL images."""
    square = picture.resized(config.size, config.size, config.interpolation)
    return (View(square.pixels(), (0.0, 0.0, float(picture.height), float(picture.width))),)


def pad(picture: Picture, config: ImageConfig) -> tuple[View, ...]:
    """Longer side to `size`, centred on white: Pillow's `ImageOps.pad`, but never thinner than one pixel."""
    size = config.size
    width, height = size, size
    if picture.width > picture.height:
        height = max(1, round(picture.height / picture.width * size))
    elif picture.height > picture.width:
        width = max(1, round(picture.width / picture.height * size))
    resized = picture.resized(height, width, config.interpolation)
    top, left = round((size - height) * 0.5), round((size - width) * 0.5)
    square = np.full((size, size, 3), _WHITE, np.uint8)
    square[top : top + height, left : left + width] = resized.pixels()
    return (View(square, _source_box(picture, resized, -top, -left, size)),)


RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {"center-crop": center_crop, "resize-exact": resize_exact, "pad": pad}
)


def _source_box(source: Picture, resized: Picture, top: int, left: int, size: int) -> Box:
    """A square of the resized image, in pixels of the source."""
    down, right = source.height / resized.height, source.width / resized.width
    return (top * down, left * right, size * down, size * right)
