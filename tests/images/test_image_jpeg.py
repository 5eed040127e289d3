"""JPEGs by two decoders: the same pixels, the same refusals, whichever of them does the work."""

import base64
import logging
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.errors import Reject
from pipeline.images import ImageConfig, jpeg, prepare
from pipeline.images.jpeg import agrees, load_jpeg
from tests.support.commands import ROOT

# Metadata damaged by chance makes Pillow warn; the warnings are silenced in a worker, and are no matter here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

# 26 x 19 pixels, arithmetic coded by libjpeg-turbo's cjpeg: no library at hand writes it.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i"
    "Z2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
    "Y2NjY2NjY2P/yQARCAATABoDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AG+AFlTvhux+juhhIOh3c24EAa4V"
    "6ZU6g3kRMqYpLkSens5gLVOlea5LJklQqlS6lQ+kByGThfYDs1hQjkUggeLSePsIbBPQ1SQ6YkODX6zSF5PGzCL/AGBOvYHFl5sp"
    "9GCWDuvi0uSA/9k="
)
OPTIONS = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "progressive": {"progressive": True},
    "progressive 4:4:4": {"progressive": True, "subsampling": 0},
    "restart markers": {"restart_marker_blocks": 2},
    "RGB without YCbCr": {"keep_rgb": True},
    "best quality": {"quality": 100, "subsampling": 0},
    "worst quality": {"quality": 1},
    "ICC profile": {"icc_profile": b"x" * 200},
    "comment": {"comment": b"x" * 60000},
}
SUBSAMPLINGS = ("440", "411", "Gray")
SHAPES = [(1, 1), (1, 9), (33, 1), (8, 8), (16, 17), (61, 43), (128, 95)]


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def load(data: bytes) -> tuple[np.ndarray, bool]:
    """The pixels, and whether Pillow was needed."""
    opened = JpegImageFile(BytesIO(data))
    loaded = load_jpeg(opened, data)
    return np.asarray(loaded.convert("RGB")), loaded is opened


@pytest.fixture
def pillow_alone(monkeypatch) -> Callable[[bytes, ImageConfig], object]:
    """`prepare` in a process in which the second decoder is not trusted."""

    def prepared(data: bytes, config: ImageConfig) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "agrees", lambda: False)
            return prepare(data, config)

    return prepared


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_kind_of_jpeg(draw, encode, shape, options):
    data = encode(draw(*shape), "JPEG", **options)
    pixels, by_pillow = load(data)
    assert np.array_equal(pixels, pillow(data))
    assert not by_pillow


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_subsampling_that_pillow_does_not_write(draw, shape, subsampling):
    data = simplejpeg.encode_jpeg(draw(*shape), colorsubsampling=subsampling)
    assert np.array_equal(load(data)[0], pillow(data))


def test_gray_file(draw, encode):
    data = encode(draw(37, 50, channels=1), "JPEG")
    pixels, by_pillow = load(data)
    assert np.array_equal(pixels, pillow(data))
    assert not by_pillow


@pytest.mark.parametrize("mode", ["CMYK", "arithmetic"])
def test_file_of_another_kind(draw, encode, mode):
    data = ARITHMETIC if mode == "arithmetic" else encode(Image.fromarray(draw(37, 50, 4)).convert("CMYK"), "JPEG")
    pixels, by_pillow = load(data)
    assert np.array_equal(pixels, pillow(data))
    assert by_pillow == (mode == "CMYK")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("decode", ["exact", "tensor", "fast"])
def test_turned_file(draw, encode, orientation, decode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(draw(40, 57), "JPEG", exif=exif)
    prepared = prepare(data, ImageConfig(size=32, recipe="resize-exact", decode=decode))
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    assert (prepared.width, prepared.height) == upright.size
    expected = np.asarray(upright.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert abs(prepared.views[0].pixels - expected).max() <= (0 if decode == "exact" else 3)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "jobs/assets/photos").glob("*.jpg"))[:6])
def test_photograph_at_every_scale(name):
    data = (ROOT / "jobs/assets/photos" / name).read_bytes()
    for shrink in (1, 2, 4, 8):
        opened, reference = (JpegImageFile(BytesIO(data)) for _ in range(2))
        for image in (opened, reference):
            image.draft(image.mode, (image.width // shrink, image.height // shrink))
        loaded = load_jpeg(opened, data)
        assert loaded is not opened
        assert np.array_equal(np.asarray(loaded), np.asarray(reference.convert("RGB")))


def damaged(data: bytes) -> list[bytes]:
    """Cut at many places, bytes changed, taken out and added."""
    rng = np.random.default_rng(0)
    files = [data[:end] for end in range(0, len(data), max(1, len(data) // 60))]
    files += [data + b"junk" * 50, data[:-2], data[:-2] + bytes(40), data[:-2] + b"\xff\xd9" + data[:-20]]
    for _ in range(60):
        at, length = int(rng.integers(2, len(data))), int(rng.integers(1, 9))
        noise = rng.integers(0, 256, length, np.uint8).tobytes()
        files += [
            data[:at] + noise + data[at + length :],
            data[:at] + data[at + length :],
            data[:at] + noise + data[at:],
        ]
    return files


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"subsampling": 0}], ids=str
)
def test_damaged_file_is_shown_or_refused_as_by_pillow_alone(draw, encode, pillow_alone, options):
    refused = 0
    for data in damaged(encode(draw(30, 41), "JPEG", **options)):
        here, there = prepare(data, ImageConfig(size=16)), pillow_alone(data, ImageConfig(size=16))
        if isinstance(there, Reject):
            assert here == there
            refused += 1
        else:
            assert np.array_equal(here.views[0].pixels, there.views[0].pixels)
    assert refused > 60


def test_other_build_of_the_second_decoder(monkeypatch, caplog, draw, encode):
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: np.zeros((*jpeg._TRIAL_SIZE[::-1], 4), np.uint8))
    agrees.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not agrees()
        data = encode(draw(43, 61), "JPEG")
        assert np.array_equal(load(data)[0], pillow(data))
    finally:
        agrees.cache_clear()
    assert "Pillow alone decodes" in caplog.text


def test_second_decoder_agrees_here():
    assert agrees()
