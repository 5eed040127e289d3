"""Modes `tensor` and `fast` beside `exact`: how far their pixels are, and that they are what their names promise."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.images import ImageConfig, Prepared, decode, prepare
from pipeline.images.jpeg import load_jpeg
from tests.support.commands import ROOT

PHOTOGRAPHS = sorted((ROOT / "jobs/assets/photos").glob("*.jpg"))[:4]
FARTHEST = 3  # levels between torch's 16-bit weights and Pillow's, as measured on 453 photographs
SHAPES = [(97, 131), (131, 97), (64, 64), (33, 500), (7, 5), (1, 90), (90, 1), (1, 1)]


def pixels_of(data: bytes, **options: object) -> np.ndarray:
    prepared = prepare(data, ImageConfig(**options))
    assert isinstance(prepared, Prepared), prepared
    return prepared.views[0].pixels


def torchvision_on_a_tensor(pixels: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """What `v2.Resize(size, antialias=True)` and `v2.CenterCrop(size)` of torchvision 0.29 do with a uint8 tensor: the
    longer side is cut to an integer, torch resamples in uint8, the crop is rounded."""
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]  # planar, where ours has its channels last
    height, width = pixels.shape[:2]
    target = (int(size * height / width), size) if width <= height else (size, int(size * width / height))
    resized = torch.nn.functional.interpolate(tensor, target, mode=interpolation, align_corners=False, antialias=True)
    top, left = round((target[0] - size) / 2.0), round((target[1] - size) / 2.0)
    return resized[0, :, top : top + size, left : left + size].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensor_pixels_are_those_of_torchvision(draw, encode, shape, interpolation):
    pixels, options = draw(*shape), {"size": 64, "interpolation": interpolation}
    data = encode(pixels, "PNG")
    found = pixels_of(data, decode="tensor", **options)
    assert np.array_equal(found, torchvision_on_a_tensor(pixels, 64, interpolation))
    assert found.flags.c_contiguous
    assert found.flags.writeable


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.stem)
def test_tensor_is_near_and_fast_is_further(path):
    data = path.read_bytes()
    exact = pixels_of(data).astype(int)
    tensor, fast = (abs(pixels_of(data, decode=mode) - exact) for mode in ("tensor", "fast"))
    assert tensor.max() <= FARTHEST
    assert tensor.mean() < fast.mean() < 3


@pytest.mark.parametrize("recipe", ["resize-exact", "pad"])
def test_other_recipes_are_near_too(draw, encode, recipe):
    data = encode(draw(90, 131), "PNG")
    exact, tensor = (pixels_of(data, decode=mode, recipe=recipe, size=48) for mode in ("exact", "tensor"))
    assert abs(tensor.astype(int) - exact).max() <= FARTHEST


def test_image_of_several_memory_blocks(encode):
    """Pillow keeps more than 16 MB in pieces, which cannot be looked at as one."""
    with pytest.raises(ValueError, match="not contiguous"):
        pa.array(Image.new("RGB", (2100, 2200)))
    large = np.arange(2200 * 2100 * 3, dtype=np.uint32).reshape(2200, 2100, 3).astype(np.uint8)
    data = encode(large, "PNG", compress_level=1)
    found = pixels_of(data, decode="tensor", recipe="resize-exact", size=32)
    assert abs(found - pixels_of(data, recipe="resize-exact", size=32).astype(int)).max() <= FARTHEST


@pytest.mark.parametrize(
    ("shape", "recipe", "scale"),
    [((256, 400), "center-crop", 4), ((255, 400), "center-crop", 2), ((64, 64), "pad", 1), ((600, 530), "pad", 8)],
)
def test_scale_of_fast_decoding(draw, encode, monkeypatch, shape, recipe, scale):
    sizes = []
    monkeypatch.setattr(decode, "load_jpeg", lambda image, data: sizes.append(image.size) or load_jpeg(image, data))
    data = encode(draw(*shape), "JPEG", quality=95)
    found = prepare(data, ImageConfig(size=64, recipe=recipe, decode="fast"))
    assert sizes == [(-(-shape[1] // scale), -(-shape[0] // scale))]
    assert (found.height, found.width) == shape
    assert found.views[0].crop == prepare(data, ImageConfig(size=64, recipe=recipe)).views[0].crop
