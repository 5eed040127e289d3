"""The pixels of a JPEG: Pillow's, bit for bit, by whichever decoder gives them sooner.

simplejpeg drives the same libjpeg-turbo as Pillow, in one call and without its row-by-row copies. It is used where the
two are known to agree: gray and colour of 8 bits, files without a flaw. In its strict mode it refuses every file that
libjpeg warns about, so that Pillow alone decides what is shown and what is rejected, and with which words. Whether the
two builds at hand agree is tried out once per process, on JPEGs made on the spot.

The pixels travel as four bytes each, the way Pillow keeps them, so that neither Pillow nor torch has to copy them.
"""

import logging
from contextlib import suppress
from functools import cache
from io import BytesIO
from typing import Any, Final

import numpy as np
import pyarrow as pa
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

_LOG: Final = logging.getLogger(__name__)
_BYTES_PER_PIXEL: Final = 4  # of Pillow's mode RGB in memory: red, green, blue and one that is not looked at
_SHRINKS: Final = (1, 2, 4, 8)  # libjpeg's scaled decodings that both decoders have
# The kinds of JPEG that take different ways through libjpeg-turbo; sides that are no multiple of a block.
_KINDS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("RGB", {"quality": 75, "subsampling": "4:2:0"}),
    ("RGB", {"quality": 90, "subsampling": "4:2:2", "restart_marker_blocks": 3}),
    ("RGB", {"quality": 60, "subsampling": "4:4:4", "progressive": True}),
    ("RGB", {"quality": 80, "subsampling": "4:2:0", "progressive": True}),
    ("L", {"quality": 85}),
)
_TRIAL_SIZE: Final = (61, 43)
# A file without an end marker near its end is cut off: Pillow tells without decoding all that its header claims.
_END: Final = b"\xff\xd9"
_TAIL_BYTES: Final = 1024


def load_jpeg(image: JpegImageFile, data: bytes) -> Image.Image:
    """Decode an opened JPEG at the size that it has, which `draft` may have lowered.

    Args:
        image: opened by Pillow, not loaded.
        data: the file.

    Returns:
        An image of mode RGB if simplejpeg gave it, else `image`, loaded, in its own mode.

    Raises:
        OSError: as Pillow, for a damaged file.
    """
    if image.mode in ("RGB", "L") and _END in data[-_TAIL_BYTES:] and agrees():
        with suppress(ValueError):  # a flaw, or a kind that only Pillow knows: it judges
            return _by_simplejpeg(data, image.size)
    image.load()
    return image


@cache
def agrees() -> bool:
    """Whether simplejpeg gives Pillow's pixels in this process; a warning is logged if it does not."""
    try:
        differing = [f"{mode} {options}" for mode, options in _KINDS if not _same_pixels(mode, options)]
    except (ValueError, OSError) as error:
        differing = [str(error)]
    if differing:
        _LOG.warning("simplejpeg does not give Pillow's pixels here (%s); Pillow alone decodes", "; ".join(differing))
    return not differing


def _same_pixels(mode: str, options: dict[str, Any]) -> bool:
    file = BytesIO()
    _trial_picture().convert(mode).save(file, "JPEG", **options)
    for shrink in _SHRINKS:
        opened = JpegImageFile(BytesIO(file.getvalue()))
        opened.draft(opened.mode, (opened.width // shrink, opened.height // shrink))
        found = _by_simplejpeg(file.getvalue(), opened.size)
        if found.tobytes() != opened.convert("RGB").tobytes():
            return False
    return True


def _trial_picture() -> Image.Image:
    """Ramps, edges and noise."""
    width, height = _TRIAL_SIZE
    values = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3)
    noise, ramps = values**2 % 251, values // 31
    return Image.fromarray(np.where(values % 7 < 3, noise, ramps % 256).astype(np.uint8))


def _by_simplejpeg(data: bytes, size: tuple[int, int]) -> Image.Image:
    """Pixels of `size` (width, height), never copied; ValueError if simplejpeg refuses or gives another size."""
    width, height = size
    pixels = simplejpeg.decode_jpeg(data, "RGBX", min_height=height, min_width=width)
    if pixels.shape != (height, width, _BYTES_PER_PIXEL):
        raise ValueError(f"pixels must be {(height, width, _BYTES_PER_PIXEL)}, got {pixels.shape}")
    return Image.fromarrow(
        pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), _BYTES_PER_PIXEL), "RGB", size
    )
