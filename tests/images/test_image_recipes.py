"""Recipes against the rules of the training code they are named after, written down here a second time."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.errors import Reject, Stage
from pipeline.images import ImageConfig, Prepared, prepare

SHAPES = [
    (97, 131),
    (131, 97),
    (64, 64),
    (33, 500),
    (500, 33),
    (7, 5),
    (64, 65),
    (64, 67),
    (67, 64),
    (1, 90),
    (90, 1),
    (1, 1),
]
FILTERS = ["bilinear", "bicubic", "lanczos", "box"]


def resize_and_center_crop(image: Image.Image, size: int, method: Image.Resampling) -> np.ndarray:
    """What torchvision documents for Resize(size) and CenterCrop(size) on a PIL image."""
    width, height = image.size
    if width <= height:
        image = image.resize((size, int(size * height / width)), method)
    else:
        image = image.resize((int(size * width / height), size), method)
    top, left = round((image.height - size) / 2.0), round((image.width - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


REFERENCES = {
    "center-crop": resize_and_center_crop,
    "resize-exact": lambda image, size, method: np.asarray(image.resize((size, size), method)),
    "pad": lambda image, size, method: np.asarray(ImageOps.pad(image, (size, size), method, color="white")),
}


def view_of(pixels: np.ndarray, encode, config: ImageConfig):
    prepared = prepare(encode(pixels, "PNG"), config)
    assert isinstance(prepared, Prepared), prepared
    assert (prepared.height, prepared.width) == pixels.shape[:2]
    (view,) = prepared.views
    return view


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("recipe", REFERENCES)
def test_pixels_equal_the_reference(draw, encode, recipe, shape, interpolation):
    pixels = draw(*shape)
    view = view_of(pixels, encode, ImageConfig(recipe=recipe, size=64, interpolation=interpolation))
    method = Image.Resampling[interpolation.upper()]
    assert np.array_equal(view.pixels, REFERENCES[recipe](Image.fromarray(pixels), 64, method))


@pytest.mark.parametrize("recipe", REFERENCES)
def test_view_is_a_plain_array_of_its_own(draw, encode, recipe):
    view = view_of(draw(50, 70), encode, ImageConfig(recipe=recipe, size=24))
    assert (view.pixels.shape, view.pixels.dtype) == ((24, 24, 3), np.uint8)
    assert view.pixels.flags.c_contiguous
    assert view.pixels.flags.writeable
    assert (view.flip, view.index) == (False, 0)


@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (301, 90), (90, 90), (40, 31)], ids=str)
@pytest.mark.parametrize("recipe", REFERENCES)
def test_crop_box_leads_back_to_the_source(encode, recipe, shape):
    height, width = shape
    rows, columns = np.mgrid[0:height, 0:width]
    # Red and green tell where a pixel comes from; blue tells the source from the white padding.
    source = np.stack([250 * rows / height, 250 * columns / width, 0 * rows], axis=2).round().astype(np.uint8)
    view = view_of(source, encode, ImageConfig(recipe=recipe, size=64, interpolation="bilinear"))
    top, left, crop_height, crop_width = view.crop
    centres = (np.arange(64) + 0.5) / 64
    source_rows, source_columns = top + centres * crop_height, left + centres * crop_width
    inside = view.pixels[..., 2] == 0
    within = np.logical_and.outer(
        *((at > 0) & (at < end) for at, end in ((source_rows, height), (source_columns, width)))
    )
    assert np.array_equal(inside, within)
    margin = 0.06  # of the side: antialiasing pulls the ramp's ends inwards
    middle = np.logical_and.outer(
        *(abs(at / end - 0.5) < 0.5 - margin for at, end in ((source_rows, height), (source_columns, width)))
    )
    assert middle.sum() > 300
    red, green = np.broadcast_arrays(
        ((source_rows - 0.5) * 250 / height)[:, None], (source_columns - 0.5) * 250 / width
    )
    assert abs(view.pixels[..., 0] - red)[middle].max() < 1.2
    assert abs(view.pixels[..., 1] - green)[middle].max() < 1.2


@pytest.mark.parametrize(
    ("recipe", "shape", "crop"),
    [
        ("center-crop", (100, 300), (0, 100, 100, 100)),
        ("center-crop", (300, 100), (100, 0, 100, 100)),
        ("resize-exact", (100, 300), (0, 0, 100, 300)),
        ("pad", (100, 200), (-50, 0, 200, 200)),
        ("pad", (200, 100), (0, -50, 200, 200)),
    ],
)
def test_crop_box_of_round_numbers(draw, encode, recipe, shape, crop):
    assert view_of(draw(*shape), encode, ImageConfig(recipe=recipe, size=52)).crop == pytest.approx(crop)


@pytest.mark.parametrize("shape", [(1, 60000), (60000, 1)], ids=str)
def test_extreme_aspect(encode, shape):
    data = encode(np.full((*shape, 3), 9, np.uint8), "PNG")
    outcome = prepare(data, ImageConfig())
    assert isinstance(outcome, Reject)
    assert (outcome.stage, outcome.reason) == (Stage.PREPROCESS, "too_large")
    assert "256 x 15360000" in outcome.detail
    for recipe, rows_and_columns in (("resize-exact", 256 * 256), ("pad", 256)):
        prepared = prepare(data, ImageConfig(recipe=recipe))
        assert isinstance(prepared, Prepared), recipe
        assert (prepared.views[0].pixels == 9).all(axis=2).sum() == rows_and_columns
