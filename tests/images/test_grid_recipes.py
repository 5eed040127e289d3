"""Recipes whose views have several shapes, against their codes' descriptions, written down here a second time."""

import math

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.errors import Reject, Stage
from pipeline.images import ImageConfig, Prepared, View, describe, prepare

SHAPES = [(97, 131), (131, 97), (64, 64), (60, 200), (200, 60), (20, 31), (300, 290), (640, 480)]


def view_of(picture: Image.Image, encode, **options: object) -> View:
    prepared = prepare(encode(picture, "PNG"), ImageConfig(**options))
    assert isinstance(prepared, Prepared), prepared
    (view,) = prepared.views
    assert view.pixels.flags.c_contiguous
    return view


def emu3(picture: Image.Image, area: int) -> Image.Image:
    """Emu3's `emu3/train/prepare_data.py`, `smart_resize`, and then that of its tokenizer's image processor
    (`image_processing_emu3visionvq.py`), which have the same name: to an area, and to multiples of 8 between 512 x 512
    and 1024 x 1024 pixels. Both resample by Pillow's default, bicubic."""
    factor = math.sqrt(area / (picture.width * picture.height))
    picture = picture.resize((int(round(picture.width * factor)), int(round(picture.height * factor))))  # noqa: RUF046
    sides = [picture.width, picture.height]
    found = [round(side / 8) * 8 for side in sides]
    if found[0] * found[1] > 1024 * 1024:
        factor = math.sqrt(sides[0] * sides[1] / (1024 * 1024))
        found = [math.floor(side / factor / 8) * 8 for side in sides]
    elif found[0] * found[1] < 512 * 512:
        factor = math.sqrt(512 * 512 / (sides[0] * sides[1]))
        found = [math.ceil(side * factor / 8) * 8 for side in sides]
    return picture.resize(tuple(found))


@pytest.mark.parametrize("size", [512, 520, 720, 1024])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes_and_pixels_of_emu3(draw, encode, shape, size):
    picture = Image.fromarray(draw(*shape))
    view = view_of(picture, encode, recipe="emu3", size=size)
    assert np.array_equal(view.pixels, np.asarray(emu3(picture, size * size)))
    assert not view.pixels.shape[0] % 8
    assert not view.pixels.shape[1] % 8
    assert 512**2 <= view.pixels.shape[0] * view.pixels.shape[1] <= 1024**2
    assert view.crop == (0, 0, *shape)


@pytest.mark.parametrize("shape", [(10, 51), (51, 10), (1, 900)], ids=str)
def test_aspect_that_emu3_does_not_take(draw, encode, shape):
    outcome = prepare(encode(draw(*shape), "PNG"), ImageConfig(recipe="emu3", size=512))
    assert isinstance(outcome, Reject)
    assert (outcome.stage, outcome.reason) == (Stage.PREPROCESS, "aspect")
    assert "at most 5" in outcome.detail


def crop_sizes(patches: int, patch: int) -> list[tuple[int, int]]:
    """Lumina-mGPT's `generate_crop_size_list` with a ratio of at most 4, as (width, height)."""
    found, width, height = [], patches, 1
    while width > 0:
        if max(width, height) / min(width, height) <= 4:
            found.append((width * patch, height * patch))
        if (height + 1) * width <= patches:
            height += 1
        else:
            width -= 1
    return found


@pytest.mark.parametrize(("size", "patch"), [(512, 32), (256, 32), (256, 16), (100, 32), (32, 32)])
def test_shapes_of_a_budget(size, patch):
    shapes = ImageConfig(recipe="buckets", size=size, patch=patch).shapes
    assert [(width, height) for height, width in shapes] == crop_sizes((size // patch) ** 2, patch)


LISTED = {"buckets": ("32x32", "24x40", "40x24", "16x64")}


@pytest.mark.parametrize("options", [LISTED, {"patch": 8}, {**LISTED, "interpolation": "lanczos"}], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 90)], ids=str)
def test_bucket_and_its_pixels(draw, encode, shape, options):
    """The bucket that keeps most of the image; scaled to cover it, both sides rounded; the middle."""
    picture = Image.fromarray(draw(*shape))
    sizes = [(64, 16), (40, 24), (32, 32), (24, 40)] if "buckets" in options else crop_sizes(16, 8)
    view = view_of(picture, encode, recipe="buckets", size=32, **options)

    def lost(size: tuple[int, int]) -> float:
        scale = max(size[0] / picture.width, size[1] / picture.height)
        return 1 - size[0] * size[1] / (picture.width * scale * picture.height * scale)

    width, height = view.pixels.shape[1::-1]
    assert (width, height) in sizes
    assert lost((width, height)) == pytest.approx(min(map(lost, sizes)))
    scale = max(width / picture.width, height / picture.height)
    method = Image.Resampling[options.get("interpolation", "bicubic").upper()]
    resized = picture.resize(
        (max(width, round(picture.width * scale)), max(height, round(picture.height * scale))), method
    )
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    assert np.array_equal(view.pixels, np.asarray(resized.crop((left, top, left + width, top + height))))
    top, left, crop_height, crop_width = view.crop
    assert (crop_width / crop_height) == pytest.approx(width / height, rel=0.05)
    assert top + crop_height / 2 == pytest.approx(shape[0] / 2, abs=0.51 * shape[0] / resized.height)
    assert left + crop_width / 2 == pytest.approx(shape[1] / 2, abs=0.51 * shape[1] / resized.width)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"recipe": "buckets", "buckets": ["32"]}, "must be like 256x384"),
        ({"recipe": "buckets", "buckets": ["0x32"]}, "must be like 256x384"),
        ({"recipe": "buckets", "buckets": ["32x32", "32x32"]}, "must not name a shape twice"),
        ({"recipe": "buckets", "buckets": ["32x32"], "patch": 8}, "image.patch must be null with image.buckets"),
        ({"recipe": "buckets", "size": 20}, r"image.size must be at least image.patch \(32\), got 20"),
        ({"recipe": "pad", "patch": 8}, "image.patch must be null for recipe pad"),
        ({"buckets": ["32x32"]}, "image.buckets must be null for recipe center-crop"),
        ({"recipe": "emu3"}, "image.size must be 512 to 1024 for recipe emu3, got 256"),
        ({"recipe": "emu3", "size": 720, "decode": "fast"}, "must be exact or tensor"),
    ],
)
def test_refused_configuration(options, complaint):
    with pytest.raises(ValidationError, match=complaint):
        ImageConfig(**options)


@pytest.mark.parametrize(
    ("options", "multiple", "pixels"),
    [
        ({"size": 96}, 96, 96 * 96),
        ({"recipe": "emu3", "size": 720}, 8, 720 * 720),
        ({"recipe": "buckets", **LISTED}, 8, 1024),
        ({"recipe": "buckets", "size": 256}, 32, 256 * 256),
    ],
)
def test_what_is_known_of_the_shapes_beforehand(options, multiple, pixels):
    config = ImageConfig(**options)
    assert (config.multiple, config.view_pixels) == (multiple, pixels)


def test_identity_holds_the_shapes_however_they_were_said():
    budget = ImageConfig(recipe="buckets", size=32, patch=8)
    listed = ImageConfig(recipe="buckets", size=32, buckets=[f"{height}x{width}" for height, width in budget.shapes])
    assert describe(budget) == describe(listed)
    assert describe(budget) != describe(ImageConfig(recipe="buckets", size=32, patch=16))
