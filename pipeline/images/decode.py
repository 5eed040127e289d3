"""Bytes to an upright RGB image: the pixels of Pillow, bit for bit, and a policy for each kind that Pillow leaves open.

Mode `fast` has libjpeg decode a JPEG at a half, a quarter or an eighth, as long as both sides keep `image.size` pixels.

| source | policy |
|---|---|
| EXIF orientation | applied; a damaged EXIF block counts as upright |
| alpha of any kind | composited on white, else the hidden colour of transparent pixels would show |
| one transparent colour in a PNG of 16-bit RGB, or of 2- or 4-bit gray | shows: Pillow does not find it |
| CMYK, YCCK | as Pillow converts, Adobe's inverted ones included |
| ICC profile | ignored, as by the models' training code |
| 16-bit gray | round(v / 257); Pillow's own conversion clips at 255 |
| 32-bit, signed or float gray | refused: nothing says which value is white |
| animation, several pages | the first frame |

The plugins are called directly. `Image.open` would try others (EPS starts Ghostscript), warn where we refuse, and build
a slower multi-picture image where a JPEG's first picture is wanted.
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from types import MappingProxyType
from typing import Final

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.images.config import ImageConfig
from pipeline.images.jpeg import agrees, load_jpeg
from pipeline.images.pictures import Picture, picture_of
from pipeline.images.reasons import BadImage, Reason, Unwanted
from pipeline.images.sniff import Format, JpegHeader, check_structure, read_jpeg, sniff

SizeRule = Callable[[int, int], str | None]

_PLUGINS: Final[Mapping[Format, Callable[[BytesIO], ImageFile.ImageFile]]] = MappingProxyType(
    {
        Format.JPEG: JpegImageFile,
        Format.PNG: PngImageFile,
        Format.GIF: GifImageFile,
        Format.WEBP: WebPImageFile,
        Format.AVIF: AvifImageFile,
        Format.TIFF: TiffImageFile,
        Format.BMP: BmpImageFile,
        Format.PNM: PpmImageFile,
    }
)
# What Pillow raises for damaged files; anything else is a bug, here or there.
_DAMAGE: Final = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_BOMB: Final = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# Decoders that Pillow runs in Python: so slow, with the GIL held, that a few files would stall a worker.
_PYTHON_DECODERS: Final = frozenset(("bmp_rle", "ppm", "ppm_plain"))
_8_BIT: Final = frozenset(("1", "L", "P", "LA", "La", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr"))
_GRAY_16: Final = frozenset(("I;16", "I;16B", "I;16L", "I;16N"))
_TO_8_BIT: Final = np.rint(np.arange(65536) / 257).astype(np.uint8)
_WHITE: Final = (255, 255, 255)
# EXIF 2.32, tag 0x0112: what undoes the camera's orientation.
_UPRIGHT: Final[Mapping[object, Image.Transpose]] = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
_ON_ITS_SIDE: Final = frozenset(turn for tag, turn in _UPRIGHT.items() if tag in (5, 6, 7, 8))


def configure_pillow() -> None:
    """Set Pillow up for a worker process that decodes on many threads; call it once, before the threads start.

    Pixels do not depend on it. AVIF gets one thread per image (else each decode starts one per core), and Pillow's
    warnings about odd metadata, which go with files that decode well, are silenced for the process. The second decoder
    of JPEGs is tried out.
    """
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    warnings.filterwarnings("ignore", module=r"PIL\.")
    agrees()


def decode(data: bytes, config: ImageConfig, size_rule: SizeRule | None = None) -> Picture:
    """An upright RGB picture, to be resampled as `config.decode` says.

    Args:
        data: the file.
        config: mode and limits.
        size_rule: the rule that an image of some width and height breaks; asked before the limits, as what is not
            wanted is no reject.

    Raises:
        BadImage: with every reason but `no_image` and `internal`.
        Unwanted: it breaks a rule.
        Exception: for a bug, or when memory runs out.
    """
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "Pillow is set to show truncated files whole; pixels would be made up"
    if not data:
        raise BadImage(Reason.EMPTY, "no bytes")
    if len(data) > config.max_bytes:
        limit = f"must be at most {config.max_bytes:,} (image.max_bytes)"
        raise BadImage(Reason.TOO_LARGE, f"{len(data):,} bytes; {limit}")
    form = sniff(data)
    if form is Format.JPEG:
        header = read_jpeg(data, config.max_scan_pixels)
        _check_wanted(header.width, header.height, size_rule)
        _check_jpeg(header, config)
    else:
        check_structure(form, data)
    try:
        return _load(form, data, config, size_rule)
    except _BOMB as error:
        raise BadImage(Reason.TOO_LARGE, str(error)) from error
    except _DAMAGE as error:
        reason = Reason.TRUNCATED if "truncated" in str(error).lower() else Reason.CORRUPT
        raise BadImage(reason, f"{form}: {error}") from error


def _check_wanted(width: int, height: int, size_rule: SizeRule | None) -> None:
    if size_rule and (broken := size_rule(width, height)):
        raise Unwanted(broken)


def _check_jpeg(header: JpegHeader, config: ImageConfig) -> None:
    if not header.dct or header.precision != 8 or header.components not in (1, 3, 4):
        kind = "" if header.dct else "lossless or hierarchical "
        raise BadImage(
            Reason.UNSUPPORTED_FORMAT,
            f"{kind}JPEG of {header.precision} bits and {header.components} components; must be DCT, 8 bits, 1, 3 or 4",
        )
    if header.scans * header.width * header.height > config.max_scan_pixels:
        raise BadImage(
            Reason.TOO_LARGE,
            f"{header.width} x {header.height} pixels in {header.scans} scans or more; "
            f"pixels x scans must be at most {config.max_scan_pixels} (image.max_scan_pixels)",
        )


def _check_limits(width: int, height: int, config: ImageConfig) -> None:
    if width * height > config.max_pixels:
        limit = f"must be at most {config.max_pixels} pixels (image.max_pixels)"
        raise BadImage(Reason.TOO_LARGE, f"{width} x {height} pixels; {limit}")
    if min(width, height) < config.min_side:
        limit = f"both sides must be at least {config.min_side} (image.min_side)"
        raise BadImage(Reason.TOO_SMALL, f"{width} x {height} pixels; {limit}")


def _load(form: Format, data: bytes, config: ImageConfig, size_rule: SizeRule | None) -> Picture:
    image = _PLUGINS[form](BytesIO(data))  # reads the header alone
    source = image.size
    _check_wanted(*source, size_rule)
    _check_limits(*source, config)
    _check_kind(image)
    if isinstance(image, JpegImageFile):
        if config.decode == "fast":
            image.draft(image.mode, (config.size, config.size))
        rgb = _to_rgb(load_jpeg(image, data))
    else:
        image.load()
        rgb = _to_rgb(image)
    turned = _turn(image)
    upright = rgb if turned is None else rgb.transpose(turned)
    return picture_of(upright, config.decode, source if turned not in _ON_ITS_SIDE else source[::-1])


def _check_kind(image: ImageFile.ImageFile) -> None:
    """Refuse what could be decoded, but not to known pixels or not in bounded time."""
    slow = _PYTHON_DECODERS.intersection(tile.codec_name for tile in image.tile)
    if slow:
        raise BadImage(
            Reason.UNSUPPORTED_FORMAT, f"{image.format} of the kind that needs Pillow's slow {min(slow)} decoder"
        )
    if image.mode not in _8_BIT and not _is_gray_16(image):
        detail = f"{image.format} of mode {image.mode}: not 8 bits, and not 16-bit gray"
        raise BadImage(Reason.UNSUPPORTED_FORMAT, detail)


def _is_gray_16(image: ImageFile.ImageFile) -> bool:
    """Whether the values are 0 (black) to 65535 (white); Pillow's modes alone do not say that."""
    if isinstance(image, PpmImageFile):
        return image.mode == "I"
    if isinstance(image, TiffImageFile):  # I;16 may hold 12 bits, or have white at zero; I is 32 bits or signed
        layout = (image.tag_v2.get(BITSPERSAMPLE), image.tag_v2.get(PHOTOMETRIC_INTERPRETATION))
        return image.mode in _GRAY_16 and layout == ((16,), 1)
    return image.mode in _GRAY_16


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _GRAY_16 or image.mode == "I":
        return _gray_16_to_rgb(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    rgb = Image.new("RGB", rgba.size, _WHITE)
    rgb.paste(rgba, mask=rgba)
    return rgb


def _gray_16_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    gray = _TO_8_BIT[values]
    if "transparency" in image.info:
        gray[values == image.info["transparency"]] = _WHITE[0]
    return Image.fromarray(gray).convert("RGB")


def _turn(source: Image.Image) -> Image.Transpose | None:
    """What makes a loaded image upright."""
    try:
        orientation = source.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGE:  # a side note written by a thousand programs; no error in it spoils the pixels
        return None
    return _UPRIGHT.get(orientation)
