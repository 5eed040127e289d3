"""Recipes whose views have several shapes: the aspect of an image is kept, or nearly so."""

import math
from typing import Final

from pipeline.errors import Stage
from pipeline.images.config import EMU3_MULTIPLE, EMU3_SIDES, ImageConfig
from pipeline.images.pictures import Picture
from pipeline.images.reasons import BadImage, Reason
from pipeline.images.views import Draw, View, check_between

_EMU3_MAX_ASPECT: Final = 5


def emu3(picture: Picture, config: ImageConfig, _: Draw) -> tuple[View, ...]:
    """To an area of `size` x `size`, then both sides to multiples of 8: Emu3 (https://github.com/baaivision/Emu3).

    `emu3/train/prepare_data.py` resamples to the area; the image processor of its tokenizer resamples once more to the
    multiples, and keeps the pixels between 512 x 512 and 1024 x 1024.

    Raises:
        BadImage: `aspect`, if one side is more than five times the other.
    """
    ratio = (config.size**2 / (picture.height * picture.width)) ** 0.5
    height, width = round(picture.height * ratio), round(picture.width * ratio)
    if min(height, width) < EMU3_MULTIPLE or max(height, width) > _EMU3_MAX_ASPECT * min(height, width):
        detail = f"{picture.width} x {picture.height} pixels: the aspect must be at most {_EMU3_MAX_ASPECT}"
        raise BadImage(Reason.ASPECT, detail, Stage.PREPROCESS)
    resized = picture.resized(height, width, config.filter)
    pixels = resized.resized(*_emu3_sides(height, width), config.filter).pixels()
    return (View(pixels, (0.0, 0.0, float(picture.height), float(picture.width))),)


def _emu3_sides(height: int, width: int) -> tuple[int, int]:
    """The nearest multiples, as long as their product is in the range; else the area is scaled into it."""
    step, (low, high) = EMU3_MULTIPLE, (side**2 for side in EMU3_SIDES)
    near = round(height / step) * step, round(width / step) * step
    if near[0] * near[1] > high:
        shrink = math.sqrt(height * width / high)
        return math.floor(height / shrink / step) * step, math.floor(width / shrink / step) * step
    if near[0] * near[1] < low:
        grow = math.sqrt(low / (height * width))
        return math.ceil(height * grow / step) * step, math.ceil(width * grow / step) * step
    return near


def buckets(picture: Picture, config: ImageConfig, _: Draw) -> tuple[View, ...]:
    """To the shape of a list that keeps most of the image: scaled until it is covered, then the middle.

    Without a list the shapes are those of a budget of patches, as Lumina-mGPT makes them for Chameleon's tokenizer
    (https://github.com/Alpha-VLLM/Lumina-mGPT): `ImageConfig.shapes`. The list is all that is Lumina's: it halves large
    images by box filter before it resamples, and crops by lot; here images are resampled once and cut in the middle.

    Raises:
        BadImage: `too_large`, if the image is so long that the resized one would exceed `max_pixels`.
    """
    height, width = max(config.shapes, key=lambda shape: _kept(picture, *shape))  # the first of equals
    scale = max(height / picture.height, width / picture.width)
    tall, wide = max(height, round(picture.height * scale)), max(width, round(picture.width * scale))
    check_between(picture, tall, wide, config)
    top, left = (tall - height) // 2, (wide - width) // 2
    pixels = picture.resized(tall, wide, config.filter).cropped(top, left, height, width).pixels()
    down, right = picture.height / tall, picture.width / wide
    return (View(pixels, (top * down, left * right, height * down, width * right)),)


def _kept(picture: Picture, height: int, width: int) -> float:
    """The fraction of the image that is left when it is scaled to cover a shape and cut."""
    scales = height / picture.height, width / picture.width
    return min(scales) / max(scales)
