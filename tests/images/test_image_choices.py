"""Which member is the image, what can be configured, and what of it enters the fingerprint."""

import json
import typing

import pytest
from pydantic import ValidationError

from pipeline.errors import Reject, Stage
from pipeline.images import RECIPES, ImageConfig, describe, find_image
from pipeline.images.catalogue import CATALOGUE, RecipeName
from pipeline.images.identity import resampler


@pytest.mark.parametrize(
    ("extensions", "image"),
    [
        (["jpg"], "jpg"),
        (["txt", "json", "webp"], "webp"),
        (["png", "jpg"], "png"),
        (["seg.png", "jpg"], "jpg"),
        (["depth.png", "seg.png", "jpeg", "txt"], "jpeg"),
        (["v2.jpg", "txt"], "v2.jpg"),
        (["jfif", "cls"], "jfif"),
    ],
    ids=" ".join,
)
def test_image_member(extensions, image):
    assert find_image({extension: extension.encode() for extension in extensions}) == image.encode()


@pytest.mark.parametrize(
    ("members", "reason", "detail"),
    [
        ({}, "no_image", "no members"),
        ({"txt": b"a", "heic": b"b"}, "no_image", "txt, heic"),
        ({"seg.png": b"a", "depth.png": b"b"}, "no_image", "seg.png, depth.png"),
        ({"jpg.txt": b"a"}, "no_image", "jpg.txt"),
        ({"": b"a"}, "no_image", "no member has"),
        ({"jpg": b"", "txt": b"a"}, "empty", "jpg"),
        ({f"member{i}": b"" for i in range(90)}, "no_image", "member0"),
    ],
)
def test_sample_without_an_image(members, reason, detail):
    outcome = find_image(members)
    assert isinstance(outcome, Reject)
    assert (outcome.stage, outcome.reason) == (Stage.READ, reason)
    assert detail in outcome.detail
    assert len(outcome.detail) <= 200


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"decode": "nvjpeg"}, "'exact', 'tensor' or 'fast'"),
        ({"decode": "tensor", "interpolation": "lanczos"}, "must be bilinear or bicubic .* got lanczos"),
        ({"decode": "fast", "interpolation": "box"}, "must be bilinear or bicubic .* got box"),
        ({"recipe": "centre-crop"}, "'center-crop', 'resize-exact', 'pad', .*"),
        ({"interpolation": "nearest"}, "'bicubic'"),
        ({"recipe": "open-muse", "interpolation": "bicubic"}, "must be bilinear for recipe open-muse, got bicubic"),
        ({"recipe": "llamagen-tencrop-1.1", "decode": "tensor"}, "must be exact for recipe llamagen-.*, got tensor"),
        ({"recipe": "4m", "decode": "fast"}, "must be exact or tensor for recipe 4m, got fast"),
        ({"crops": 3}, "image.crops must be null for recipe center-crop, got 3"),
        ({"recipe": "4m", "crops": 257}, "less than or equal to 256"),
        ({"recipe": "amused", "min_crop_scale": 0.5}, "must be null for recipe amused"),
        ({"size": 0}, "greater than or equal to 1"),
        ({"max_pixels": 200_000_000}, "less than or equal to 89478485"),
        ({"pixels": 1}, "not permitted"),
    ],
)
def test_refused_configuration(options, complaint):
    with pytest.raises(ValidationError, match=complaint):
        ImageConfig(**options)


def test_every_recipe_of_the_configuration_exists():
    assert set(typing.get_args(RecipeName)) == set(RECIPES) == set(CATALOGUE)


def test_description_is_stable_json():
    first, second = (json.dumps(describe(ImageConfig()), sort_keys=True) for _ in range(2))
    assert first == second
    assert json.loads(first) == describe(ImageConfig())


OTHERS = {
    "recipe": "pad",
    "size": 512,
    "interpolation": "lanczos",
    "decode": "tensor",
    "max_pixels": 1000,
    "max_bytes": 1000,
    "max_scan_pixels": 1000,
    "min_side": 2,
}


def test_description_tells_every_choice_apart():
    of_one_recipe = {"crops", "min_crop_scale", "buckets", "patch"}
    assert set(OTHERS) == set(ImageConfig.model_fields) - of_one_recipe
    descriptions = [describe(ImageConfig(**{name: value})) for name, value in OTHERS.items()]
    descriptions.append(describe(ImageConfig()))
    assert len({json.dumps(description, sort_keys=True) for description in descriptions}) == len(OTHERS) + 1


def test_description_of_a_random_recipe_tells_its_chance_apart():
    choices = [{}, {"crops": 3}, {"min_crop_scale": 0.5}]
    descriptions = [describe(ImageConfig(recipe="4m", **choice), seed) for choice in choices for seed in (0, 1)]
    assert len({json.dumps(description, sort_keys=True) for description in descriptions}) == 6
    assert describe(ImageConfig(recipe="4m", crops=10)) == describe(ImageConfig(recipe="4m"))


@pytest.mark.parametrize("recipe", sorted(name for name, facts in CATALOGUE.items() if not facts.random))
def test_seed_is_no_part_of_a_recipe_without_chance(recipe):
    config = ImageConfig(recipe=recipe, size=512)
    assert describe(config, 1) == describe(config, 2)


@pytest.mark.parametrize(("decode", "generation"), [("exact", "pillow-13"), ("tensor", "torch-2"), ("fast", "torch-2")])
def test_installed_resampler_is_a_known_generation(decode, generation):
    assert resampler(decode) == generation, "it resizes to other pixels: add its generation, do not rename one"
