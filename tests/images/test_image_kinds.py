"""Every kind of file against arithmetic on the pixels that went into it, exact to the last bit."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.images import ImageConfig, Prepared, prepare

HEIGHT, WIDTH = 40, 57
# The shorter side already has the target size, so nothing is resampled: what comes out is what was decoded.
UNSCALED = ImageConfig(size=HEIGHT)
LEFT = round((WIDTH - HEIGHT) / 2)


def decoded(data: bytes) -> np.ndarray:
    prepared = prepare(data, UNSCALED)
    assert isinstance(prepared, Prepared), prepared
    assert (prepared.height, prepared.width) == (HEIGHT, WIDTH)
    return prepared.views[0].pixels


def cropped(rgb: np.ndarray) -> np.ndarray:
    return rgb[:, LEFT : LEFT + HEIGHT]


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2).astype(np.uint8)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = alpha[..., None].astype(np.float64)
    return np.floor((rgb * opacity + 255 * (255 - opacity)) / 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 75, "progressive": True}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"restart_marker_blocks": 1}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {"quality": 80}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 70}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("BMP", {}),
        ("PPM", {}),
    ],
)
def test_rgb_file(draw, encode, form, options):
    data = encode(draw(HEIGHT, WIDTH), form, **options)
    assert np.array_equal(decoded(data), cropped(np.asarray(Image.open(BytesIO(data)).convert("RGB"))))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "BMP"])
def test_gray_file(draw, encode, form):
    values = draw(HEIGHT, WIDTH, 1)
    assert np.array_equal(decoded(encode(values, form)), cropped(gray(values)))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM", "BMP", "GIF"])
def test_one_bit_file(draw, encode, form):
    bits = draw(HEIGHT, WIDTH, 1) > 110
    assert np.array_equal(decoded(encode(bits, form)), cropped(gray(bits * 255)))


def test_palette_file(draw, encode):
    image = Image.fromarray(draw(HEIGHT, WIDTH)).quantize(40)
    palette = np.array(image.getpalette()).reshape(-1, 3)
    assert np.array_equal(decoded(encode(image, "PNG")), cropped(palette[np.asarray(image)]))


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})])
def test_alpha_channel(draw, encode, form, options):
    rgba = draw(HEIGHT, WIDTH, 4)
    rgba[:5, :, 3], rgba[-5:, :, 3] = 0, 255
    data = encode(rgba, form, **options)
    assert np.array_equal(decoded(data), cropped(on_white(rgba[..., :3], rgba[..., 3])))


def test_gray_with_alpha(draw, encode):
    pair = draw(HEIGHT, WIDTH, 2)
    data = encode(pair, "PNG")
    assert Image.open(BytesIO(data)).mode == "LA"
    assert np.array_equal(decoded(data), cropped(on_white(gray(pair[..., 0]), pair[..., 1])))


def test_gray_premultiplied_with_alpha(draw, encode):
    pair = draw(HEIGHT, WIDTH, 2)
    pair[..., 1] = 255 * (pair[..., 1] > 110)
    unassociated, associated = (struct.pack("<HHIH", 338, 3, 1, kind) for kind in (2, 1))  # tag ExtraSamples
    data = encode(pair, "TIFF").replace(unassociated, associated)
    assert Image.open(BytesIO(data)).mode == "La"
    assert np.array_equal(decoded(data), cropped(gray(np.where(pair[..., 1], pair[..., 0], 255))))


@pytest.mark.parametrize(("form", "transparency"), [("PNG", 7), ("PNG", bytes(range(0, 200, 5))), ("GIF", 7)])
def test_palette_with_transparency(draw, encode, form, transparency):
    image = Image.fromarray(draw(HEIGHT, WIDTH)).quantize(40)
    data = encode(image, form, transparency=transparency, optimize=False)
    rgba = np.asarray(Image.open(BytesIO(data)).convert("RGBA"))
    assert rgba[..., 3].min() == 0
    assert np.array_equal(decoded(data), cropped(on_white(rgba[..., :3], rgba[..., 3])))


def test_rgb_with_a_transparent_colour(draw, encode):
    rgb = draw(HEIGHT, WIDTH)
    rgb[::3, ::2] = (10, 20, 30)
    expected = np.where((rgb == (10, 20, 30)).all(axis=2, keepdims=True), 255, rgb)
    assert np.array_equal(decoded(encode(rgb, "PNG", transparency=(10, 20, 30))), cropped(expected))


def wide_range(draw) -> np.ndarray:
    values = draw(HEIGHT, WIDTH, 1).astype(np.uint16) * 257 + draw(HEIGHT, WIDTH, 1, seed=1)
    values[0, 20:24] = (0, 65535, 128, 129)  # 128 is the last that rounds to 0
    return values


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray(draw, encode, form):
    values = wide_range(draw)
    expected = gray(np.floor(values / 257 + 0.5))
    pixels = decoded(encode(values, form))
    assert np.array_equal(pixels, cropped(expected))
    assert pixels[0, 20 - LEFT : 24 - LEFT, 0].tolist() == [0, 255, 0, 1]


def test_sixteen_bit_gray_in_big_endian_tiff(draw, encode):
    values = wide_range(draw)
    image = Image.frombytes("I;16B", (WIDTH, HEIGHT), values.astype(">u2").tobytes())
    assert np.array_equal(decoded(encode(image, "TIFF")), cropped(gray(np.floor(values / 257 + 0.5))))


def test_sixteen_bit_gray_with_a_transparent_value(draw, encode):
    values = wide_range(draw)
    values[::4, ::2] = 1000
    expected = np.where(values == 1000, 255, np.floor(values / 257 + 0.5))
    assert np.array_equal(decoded(encode(values, "PNG", transparency=1000)), cropped(gray(expected)))


@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 95}), ("TIFF", {})])
def test_cmyk_file(draw, encode, form, options):
    data = encode(Image.fromarray(draw(HEIGHT, WIDTH, 4), "CMYK"), form, **options)
    ink = np.asarray(Image.open(BytesIO(data))).astype(np.int64)  # Pillow has undone Adobe's inversion
    light = 255 - ink[..., 3:]
    expected = np.clip(light - np.floor(ink[..., :3] * light / 255 + 0.5), 0, 255)
    assert np.array_equal(decoded(data), cropped(expected))


@pytest.mark.parametrize(("form", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_animation_gives_its_first_frame(draw, encode, form, options):
    first, second = (Image.fromarray(draw(HEIGHT, WIDTH, seed=seed)).quantize(50) for seed in (0, 1))
    data = encode(first, form, save_all=True, append_images=[second], duration=50, **options)
    assert Image.open(BytesIO(data)).n_frames == 2
    assert np.array_equal(decoded(data), cropped(np.asarray(first.convert("RGB"))))


def test_multi_picture_jpeg_gives_its_first_picture(draw, encode):
    first, second = (Image.fromarray(draw(HEIGHT, WIDTH, seed=seed)) for seed in (0, 1))
    data = encode(first, "MPO", save_all=True, append_images=[second], quality=75)
    assert np.array_equal(decoded(data), decoded(encode(first, "JPEG", quality=75)))


def test_colour_profile_changes_nothing(draw, encode):
    pixels = draw(HEIGHT, WIDTH)
    assert np.array_equal(decoded(encode(pixels, "PNG", icc_profile=b"any profile")), cropped(pixels))


ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_exif_orientation(draw, encode, form, options, orientation):
    expected_shape = (HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT)
    stored = draw(*expected_shape)
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = np.asarray(Image.open(BytesIO(encode(stored, form, **options))).convert("RGB"))
    assert np.array_equal(decoded(encode(stored, form, exif=exif, **options)), cropped(ORIENTED[orientation](plain)))


@pytest.mark.parametrize("block", [b"", b"MM", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03garbage"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_counts_as_upright(draw, encode, block):
    pixels = draw(HEIGHT, WIDTH)
    data = encode(pixels, "JPEG", exif=b"Exif\0\0" + block)
    assert np.array_equal(decoded(data), decoded(encode(pixels, "JPEG")))
