"""Recipes of LlamaGen (https://github.com/FoundationVision/LlamaGen), as `extract_codes_c2i.py` makes its views.

The resize is that of ADM (guided diffusion, `center_crop_arr`): halved by averaging as long as the shorter side keeps
twice the target, then bicubic, both sides rounded; then the middle square. Ten-crop is torchvision's `TenCrop`.
"""

from pipeline.images.config import ImageConfig
from pipeline.images.pictures import Picture
from pipeline.images.views import Box, Draw, Recipe, View, check_between, flipped


def ten_crop(factor: float) -> Recipe:
    """The recipe that cuts four corners and the centre of a square of `factor` times the size, then all five mirrored.

    The mirrored five are cut from the mirrored square: its top left corner is the top right one of the source.
    """

    def recipe(picture: Picture, config: ImageConfig, _: Draw) -> tuple[View, ...]:
        size, wide = config.size, int(config.size * factor)
        rest = wide - size
        square, box = _adm_square(picture, wide, config)
        middle = round(rest / 2)
        places = [(0, 0), (0, rest), (rest, 0), (rest, rest), (middle, middle)]
        views: list[View] = []
        for flip in (False, True):
            for top, left in places:
                at = rest - left if flip else left  # in the square that is not mirrored
                pixels = square.cropped(top, at, size, size).pixels()
                views.append(
                    View(flipped(pixels) if flip else pixels, _within(box, wide, top, at, size), flip, len(views))
                )
        return tuple(views)

    return recipe


def center_flip(picture: Picture, config: ImageConfig, _: Draw) -> tuple[View, ...]:
    """The middle square, and its mirror image."""
    square, box = _adm_square(picture, config.size, config)
    pixels = square.pixels()
    return View(pixels, box), View(flipped(pixels), box, flip=True, index=1)


def _adm_square(picture: Picture, size: int, config: ImageConfig) -> tuple[Picture, Box]:
    """The middle square at `size`, and where it lies in the source."""
    halved = picture
    while min(halved.height, halved.width) >= 2 * size:
        halved = halved.resized(halved.height // 2, halved.width // 2, "box")
    scale = size / min(halved.height, halved.width)
    height, width = round(halved.height * scale), round(halved.width * scale)
    check_between(picture, height, width, config)
    resized = halved.resized(height, width, config.filter)
    top, left = (height - size) // 2, (width - size) // 2
    down, right = picture.height / height, picture.width / width
    return resized.cropped(top, left, size, size), (top * down, left * right, size * down, size * right)


def _within(box: Box, side: int, top: int, left: int, size: int) -> Box:
    """The box in the source of a square that lies within one of `side` pixels, whose own box is given."""
    down, right = box[2] / side, box[3] / side
    return (box[0] + top * down, box[1] + left * right, size * down, size * right)
