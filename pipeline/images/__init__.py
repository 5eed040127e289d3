"""Bytes of an image in, uint8 pixels or a reject out. Pure: no files, no network, no device.

members -> find_image -> bytes -> sniff (format, traps) -> decode (limits, Pillow, policies) -> recipe -> views
"""

from pipeline.images.config import ImageConfig
from pipeline.images.decode import configure_pillow
from pipeline.images.identity import describe, resampler
from pipeline.images.members import find_image
from pipeline.images.pixels import Prepared, prepare, prepare_wanted
from pipeline.images.reasons import Reason
from pipeline.images.recipes import RECIPES
from pipeline.images.views import Draw, View

__all__ = [
    "RECIPES",
    "Draw",
    "ImageConfig",
    "Prepared",
    "Reason",
    "View",
    "configure_pillow",
    "describe",
    "find_image",
    "prepare",
    "prepare_wanted",
    "resampler",
]
