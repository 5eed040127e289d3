"""Recipes: from an upright RGB image to the square views that the model sees, each with its crop box in the source.

A recipe is a function; its name in `RECIPES` is what `image.recipe` says. What it does is a contract with the tokens
already made: a recipe that must change gets a new name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import Stage
from pipeline.images.config import ImageConfig
from pipeline.images.reasons import BadImage, Reason

Box = tuple[float, float, float, float]
_WHITE: Final = (255, 255, 255)


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

    pixels: npt.NDArray[np.uint8]
    crop: Box
    flip: bool = False
    index: int = 0


Recipe = Callable[[Image.Image, ImageConfig], tuple[View, ...]]


def center_crop(image: Image.Image, config: ImageConfig) -> tuple[View, ...]:
    """Shorter side to `size`, then the middle square: torchvision's `Resize(size)`, `CenterCrop(size)` on PIL images.

    The resize is whole and the crop comes after: resizing the crop box alone is faster, and changes 1 % of the pixels.

    Raises:
        BadImage: `too_large`, if the image is so long that the resized one would exceed `max_pixels`.
    """
    size = config.size
    short, long = sorted(image.size)
    long_resized = int(size * long / short)
    if size * long_resized > config.max_pixels:
        detail = f"{image.width} x {image.height} pixels: an aspect so long needs {size} x {long_resized} in between"
        limit = f"must be at most {config.max_pixels} pixels (image.max_pixels)"
        raise BadImage(Reason.TOO_LARGE, f"{detail}; {limit}", Stage.PREPROCESS)
    resized = _resize(image, (size, long_resized) if image.width <= image.height else (long_resized, size), config)
    top = round((resized.height - size) / 2)
    left = round((resized.width - size) / 2)
    square = resized.crop((left, top, left + size, top + size))
    return (View(_pixels(square), _source_box(image, resized, top, left, size)),)


def resize_exact(image: Image.Image, config: ImageConfig) -> tuple[View, ...]:
    """Both sides to `size`, the aspect ignored: torchvision's `Resize((size, size))` on PIL images."""
    square = _resize(image, (config.size, config.size), config)
    return (View(_pixels(square), (0.0, 0.0, float(image.height), float(image.width))),)


def pad(image: Image.Image, config: ImageConfig) -> tuple[View, ...]:
    """Longer side to `size`, centred on white: Pillow's `ImageOps.pad`, but never thinner than one pixel."""
    size = config.size
    width, height = size, size
    if image.width > image.height:
        height = max(1, round(image.height / image.width * size))
    elif image.height > image.width:
        width = max(1, round(image.width / image.height * size))
    resized = _resize(image, (width, height), config)
    top, left = round((size - height) * 0.5), round((size - width) * 0.5)
    square = Image.new("RGB", (size, size), _WHITE)
    square.paste(resized, (left, top))
    return (View(_pixels(square), _source_box(image, resized, -top, -left, size)),)


RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {"center-crop": center_crop, "resize-exact": resize_exact, "pad": pad}
)


def _resize(image: Image.Image, size: tuple[int, int], config: ImageConfig) -> Image.Image:
    return image.resize(size, Image.Resampling[config.interpolation.upper()])


def _pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.array(image, dtype=np.uint8, order="C")


def _source_box(source: Image.Image, resized: Image.Image, top: int, left: int, size: int) -> Box:
    """A square of the resized image, in pixels of the source."""
    down, right = source.height / resized.height, source.width / resized.width
    return (top * down, left * right, size * down, size * right)
