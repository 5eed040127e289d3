"""Recipes named after training codes, against those codes' descriptions, written down here a second time.

Nothing here uses the project's resampling or cutting: only Pillow and numpy, as the codes do by way of torchvision.
"""

import math
import random

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.images import Draw, ImageConfig, Prepared, View, prepare

SIZE = 32
SHAPES = [(97, 131), (131, 97), (64, 64), (33, 200), (200, 33), (20, 31), (65, 64), (300, 290), (36, 35), (1, 90)]
SQUARE = Image.Resampling


def views_of(
    picture: Image.Image, encode, recipe: str, draw: Draw | None = None, **options: object
) -> tuple[View, ...]:
    prepared = prepare(encode(picture, "PNG"), ImageConfig(recipe=recipe, size=SIZE, **options), draw)
    assert isinstance(prepared, Prepared), prepared
    assert [view.index for view in prepared.views] == list(range(len(prepared.views)))
    return prepared.views


def adm(picture: Image.Image, size: int) -> Image.Image:
    """`center_crop_arr` of guided diffusion (Dhariwal and Nichol 2021, `image_datasets.py`), as LlamaGen's
    `dataset/augmentation.py` has it: halve by box while both sides keep twice the size, bicubic to the size with both
    sides rounded, cut the middle with the offsets rounded down."""
    width, height = picture.size
    while width >= 2 * size and height >= 2 * size:
        width, height = width // 2, height // 2
        picture = picture.resize((width, height), SQUARE.BOX)
    factor = size / min(width, height)
    pixels = np.asarray(picture.resize((round(width * factor), round(height * factor)), SQUARE.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return Image.fromarray(pixels[top : top + size, left : left + size])


def ten_crop(picture: Image.Image, size: int) -> list[np.ndarray]:
    """torchvision's `TenCrop(size)`: top left, top right, bottom left, bottom right and centre of the picture, and the
    same five of the picture mirrored."""
    crops = []
    for side in (picture, ImageOps.mirror(picture)):
        right, bottom = side.width - size, side.height - size
        centre = round((side.width - size) / 2.0), round((side.height - size) / 2.0)
        for left, top in ((0, 0), (right, 0), (0, bottom), (right, bottom), centre):
            crops.append(np.asarray(side.crop((left, top, left + size, top + size))))
    return crops


def resized_to_the_shorter_side(picture: Image.Image, size: int) -> Image.Image:
    """torchvision's `Resize(size, InterpolationMode.BILINEAR)` of a PIL image."""
    width, height = picture.size
    if width <= height:
        return picture.resize((size, int(size * height / width)), SQUARE.BILINEAR)
    return picture.resize((int(size * width / height), size), SQUARE.BILINEAR)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("recipe", "factor"), [("llamagen-tencrop-1.1", 1.1), ("llamagen-tencrop-1.05", 1.05)])
def test_ten_crop_of_llamagen(draw, encode, recipe, factor, shape):
    """`autoregressive/train/extract_codes_c2i.py --ten-crop --crop-range FACTOR`."""
    picture = Image.fromarray(draw(*shape))
    views = views_of(picture, encode, recipe)
    expected = ten_crop(adm(picture, int(SIZE * factor)), SIZE)
    assert len(views) == 10
    assert all(np.array_equal(view.pixels, crop) for view, crop in zip(views, expected, strict=True))
    assert [view.flip for view in views] == [False] * 5 + [True] * 5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_centre_and_flip_of_llamagen(draw, encode, shape):
    """`autoregressive/train/extract_codes_c2i.py` without `--ten-crop`: the view, and `torch.flip(x, dims=[-1])`."""
    picture = Image.fromarray(draw(*shape))
    centre, mirrored = views_of(picture, encode, "llamagen-center-flip")
    expected = np.asarray(adm(picture, SIZE))
    assert np.array_equal(centre.pixels, expected)
    assert np.array_equal(mirrored.pixels, expected[:, ::-1])
    assert (centre.flip, mirrored.flip) == (False, True)
    assert centre.crop == mirrored.crop


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("recipe", ["open-muse", "maskgit-vqgan"])
def test_centre_crop_of_open_muse(draw, encode, recipe, shape):
    """open-muse's `training/data.py`, `ImageNetTransform(center_crop=True)`; its `sample.py` prepares the same way for
    the VQGAN of MaskGIT."""
    picture = Image.fromarray(draw(*shape))
    (view,) = views_of(picture, encode, recipe)
    resized = resized_to_the_shorter_side(picture, SIZE)
    left, top = round((resized.width - SIZE) / 2.0), round((resized.height - SIZE) / 2.0)
    assert np.array_equal(view.pixels, np.asarray(resized)[top : top + SIZE, left : left + SIZE])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_crop_and_micro_conditions_of_amused(draw, encode, shape):
    """diffusers' `examples/amused/train_amused.py`, `process_image`: upright, resized, `RandomCrop.get_params`.

    Its crop coordinates by the formula of docs/recipes.md, from what a row holds.
    """
    picture = Image.fromarray(draw(*shape))
    (view,) = views_of(picture, encode, "amused", Draw(7, "some key"))
    resized = resized_to_the_shorter_side(picture, SIZE)
    lots = random.Random("7/0/some key")
    top, left = (int(lots.random() * (side - SIZE + 1)) for side in (resized.height, resized.width))
    assert np.array_equal(view.pixels, np.asarray(resized)[top : top + SIZE, left : left + SIZE])
    sides = picture.height, picture.width
    stored = np.array(view.crop[:2], np.float32).tolist()
    places = [round(at * int(SIZE * side / min(sides)) / side) for at, side in zip(stored, sides, strict=True)]
    assert places == [top, left]


def random_resized_crop(width: int, height: int, least: float, lots: random.Random) -> tuple[int, int, int, int]:
    """torchvision's `RandomResizedCrop.get_params` with the ratios of 4M: ten tries, then the middle."""
    low, high = 0.75, 1.3333
    for _ in range(10):
        area = width * height * (least + (1 - least) * lots.random())
        ratio = low * (high / low) ** lots.random()
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(lots.random() * (height - h + 1)), int(lots.random() * (width - w + 1)), h, w
    w, h = width, height
    if width / height < low:
        h = round(w / low)
    elif width / height > high:
        w = round(h * high)
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_crops_of_4m(draw, encode, shape):
    """ml-4m's `save_vq_tokens.py`: `CenterCropImageAugmenter`, then `RandomCropImageAugmenter`; cut, resize, mirror."""
    picture = Image.fromarray(draw(*shape))
    width, height = picture.size
    views = views_of(picture, encode, "4m", Draw(3, "a/b"), crops=6, min_crop_scale=0.5)
    assert len(views) == 6
    for view in views:
        lots, side = random.Random(f"3/{view.index}/a/b"), min(width, height)
        cut = ((height - side) // 2, (width - side) // 2, side, side)
        if view.index:
            cut = random_resized_crop(width, height, 0.5, lots)
        assert view.flip == (view.index > 0 and lots.random() < 0.5)
        assert view.crop == cut
        top, left, h, w = cut
        expected = picture.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), SQUARE.BICUBIC)
        assert np.array_equal(view.pixels, np.asarray(ImageOps.mirror(expected) if view.flip else expected))


def test_random_crops_have_the_documented_spread(draw, encode):
    picture = Image.fromarray(draw(150, 150))
    views = [view for key in range(12) for view in views_of(picture, encode, "4m", Draw(0, str(key)))[1:]]
    areas = np.array([view.crop[2] * view.crop[3] for view in views]) / 150**2
    aspects = np.array([math.log(view.crop[3] / view.crop[2]) for view in views])
    assert 0.79 < areas.min() < 0.84
    assert 0.9 < areas.max() < 1.01
    assert -math.log(1.26) < aspects.min() < -0.15  # wider or taller does not fit with four fifths of the area
    assert 0.15 < aspects.max() < math.log(1.26)
    assert 0.3 < np.mean([view.flip for view in views]) < 0.7


@pytest.mark.parametrize("recipe", ["4m", "amused"])
def test_chance_depends_on_seed_and_key_alone(draw, encode, recipe):
    picture = Image.fromarray(draw(70, 190))
    cuts = {
        (seed, key): [(view.crop, view.flip) for view in views_of(picture, encode, recipe, Draw(seed, key))]
        for seed, key in ((0, "a"), (0, "b"), (1, "a"), (1, "b"))
    }
    assert len({str(cut) for cut in cuts.values()}) == 4
    for (seed, key), cut in reversed(cuts.items()):
        assert [(view.crop, view.flip) for view in views_of(picture, encode, recipe, Draw(seed, key))] == cut


def test_chance_of_a_key_that_is_not_utf8_is_that_of_the_stored_key():
    assert Draw(3, "caf\udce9")(1).random() == Draw(3, "caf\\xe9")(1).random()


RECIPES = ["llamagen-tencrop-1.1", "llamagen-tencrop-1.05", "llamagen-center-flip", "4m", "amused", "open-muse"]


@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (90, 90)], ids=str)
@pytest.mark.parametrize("recipe", RECIPES)
def test_crop_box_and_flip_lead_back_to_the_source(encode, recipe, shape):
    """Red and green of the source say where a pixel comes from."""
    height, width = shape
    rows, columns = np.mgrid[0:height, 0:width]
    source = np.stack([250 * rows / height, 250 * columns / width, 0 * rows], axis=2).round().astype(np.uint8)
    for view in views_of(Image.fromarray(source), encode, recipe, Draw(1, "k")):
        top, left, crop_height, crop_width = view.crop
        assert top >= 0
        assert left >= 0
        assert top + crop_height <= height + 1e-6
        assert left + crop_width <= width + 1e-6
        centres = (np.arange(SIZE) + 0.5) / SIZE
        across = centres[::-1] if view.flip else centres
        red = (top + centres * crop_height - 0.5) * 250 / height
        green = (left + across * crop_width - 0.5) * 250 / width
        middle = slice(4, -4)  # antialiasing pulls the ramps' ends inwards
        assert abs(view.pixels[..., 0] - red[:, None])[middle, middle].max() < 2.5
        assert abs(view.pixels[..., 1] - green[None])[middle, middle].max() < 2.5
