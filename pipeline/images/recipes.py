"""Recipes: from an upright RGB image to the views that the model sees, each with its crop box in the source.

A recipe is a function; its name in `RECIPES` is what `image.recipe` says. What it does is a contract with the tokens
already made: a recipe that must change gets a new name. What it is known to fix beforehand stands in `catalogue`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from pipeline.images import llamagen
from pipeline.images.catalogue import RecipeName
from pipeline.images.config import ImageConfig
from pipeline.images.fourm import fourm
from pipeline.images.grids import buckets, emu3
from pipeline.images.pictures import Picture
from pipeline.images.views import Draw, Recipe, View, below, shorter_side_to, source_box

_WHITE: Final = 255


def center_crop(picture: Picture, config: ImageConfig, _: Draw) -> tuple[View, ...]:
    """Shorter side to `size`, then the middle square: torchvision's `Resize(size)`, `CenterCrop(size)` on PIL images.

    The resize is whole and the crop comes after: resizing the crop box alone is faster, and changes 1 % of the pixels.

    With a bilinear filter these are the pixels of open-muse (https://github.com/huggingface/open-muse): of its
    `training/data.py` with `center_crop`, and of its `sample.py` for the VQGAN of MaskGIT.

    Raises:
        BadImage: `too_large`, if the image is so long that the resized one would exceed `max_pixels`.
    """
    resized = shorter_side_to(picture, config.size, config)
    top, left = round((resized.height - config.size) / 2), round((resized.width - config.size) / 2)
    return (_square(picture, resized, top, left, config),)


def resize_exact(picture: Picture, config: ImageConfig, _: Draw) -> tuple[View, ...]:
    """Both sides to `size`, the aspect ignored: torchvision's `Resize((size, size))` on PIL images."""
    square = picture.resized(config.size, config.size, config.filter)
    return (View(square.pixels(), (0.0, 0.0, float(picture.height), float(picture.width))),)


def pad(picture: Picture, config: ImageConfig, _: Draw) -> tuple[View, ...]:
    """Longer side to `size`, centred on white: Pillow's `ImageOps.pad`, but never thinner than one pixel."""
    size = config.size
    width, height = size, size
    if picture.width > picture.height:
        height = max(1, round(picture.height / picture.width * size))
    elif picture.height > picture.width:
        width = max(1, round(picture.width / picture.height * size))
    resized = picture.resized(height, width, config.filter)
    top, left = round((size - height) * 0.5), round((size - width) * 0.5)
    square = np.full((size, size, 3), _WHITE, np.uint8)
    square[top : top + height, left : left + width] = resized.pixels()
    return (View(square, source_box(picture, resized, -top, -left, size)),)


def amused(picture: Picture, config: ImageConfig, draw: Draw) -> tuple[View, ...]:
    """Shorter side to `size`, then a square by lot: `process_image` of diffusers' `examples/amused/train_amused.py`.

    Its micro-conditioning is in the row: original width and height, and `crop`, which it counts in the resized image.

    Raises:
        BadImage: `too_large`, as of `center_crop`.
    """
    resized, rng = shorter_side_to(picture, config.size, config), draw(0)
    top, left = (below(rng, side - config.size + 1) for side in (resized.height, resized.width))
    return (_square(picture, resized, top, left, config),)


RECIPES: Final[Mapping[RecipeName, Recipe]] = MappingProxyType(
    {
        "center-crop": center_crop,
        "resize-exact": resize_exact,
        "pad": pad,
        "llamagen-tencrop-1.1": llamagen.ten_crop(1.1),
        "llamagen-tencrop-1.05": llamagen.ten_crop(1.05),
        "llamagen-center-flip": llamagen.center_flip,
        "4m": fourm,
        "open-muse": center_crop,
        "amused": amused,
        "maskgit-vqgan": center_crop,
        "emu3": emu3,
        "buckets": buckets,
    }
)


def _square(picture: Picture, resized: Picture, top: int, left: int, config: ImageConfig) -> View:
    square = resized.cropped(top, left, config.size, config.size)
    return View(square.pixels(), source_box(picture, resized, top, left, config.size))
