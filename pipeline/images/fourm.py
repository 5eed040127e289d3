"""The recipe of 4M (https://github.com/apple/ml-4m), as `save_vq_tokens.py` makes its views.

View 0 is the middle square. The others are torchvision's `RandomResizedCrop` with an area of at least
`image.min_crop_scale` and an aspect of 3/4 to 4/3, every second one mirrored. Each is cut out first and resampled then.
4M's crop settings (top, left, height, width, flip) are the row's `crop` and `flip`. The lots are ours: 4M draws them
from one generator, so that its crops depend on the order of the images.
"""

import math
import random
from typing import Final

from pipeline.images.config import ImageConfig
from pipeline.images.pictures import Picture
from pipeline.images.views import Draw, View, below, flipped

_ASPECTS: Final = (0.75, 1.3333)  # width / height
_TRIES: Final = 10  # then torchvision takes the middle of the image, as large as the aspect allows
_MIRRORED: Final = 0.5

Cut = tuple[int, int, int, int]


def fourm(picture: Picture, config: ImageConfig, draw: Draw) -> tuple[View, ...]:
    """One central view, the others by lot."""
    return tuple(_view(picture, config, index, draw(index)) for index in range(config.views))


def _view(picture: Picture, config: ImageConfig, index: int, rng: random.Random) -> View:
    cut = _random_cut(picture, config.crop_scale, rng) if index else _middle_square(picture)
    flip = index > 0 and rng.random() < _MIRRORED
    pixels = picture.cropped(*cut).resized(config.size, config.size, config.filter).pixels()
    top, left, height, width = map(float, cut)
    return View(flipped(pixels) if flip else pixels, (top, left, height, width), flip, index)


def _middle_square(picture: Picture) -> Cut:
    side = min(picture.height, picture.width)
    return ((picture.height - side) // 2, (picture.width - side) // 2, side, side)


def _random_cut(picture: Picture, scale: float, rng: random.Random) -> Cut:
    low, high = map(math.log, _ASPECTS)
    for _ in range(_TRIES):
        area = picture.height * picture.width * (scale + (1 - scale) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < height <= picture.height and 0 < width <= picture.width:
            return below(rng, picture.height - height + 1), below(rng, picture.width - width + 1), height, width
    aspect = min(max(picture.width / picture.height, _ASPECTS[0]), _ASPECTS[1])
    height = min(picture.height, max(1, round(picture.width / aspect)))
    width = min(picture.width, max(1, round(picture.height * aspect)))
    return (picture.height - height) // 2, (picture.width - width) // 2, height, width
