"""The image part of a run's fingerprint: all that decides which pixels come out, and which samples are rejected."""

import hashlib
from functools import cache
from typing import Any, Final

import numpy as np
import PIL
from PIL import Image, features

from pipeline.images.config import ImageConfig
from pipeline.images.sniff import Format

# The rules of decode.py in words; a rule that changes changes its word, and with it the fingerprint.
POLICIES: Final = {
    "alpha": "composited on white",
    "animation": "first frame",
    "cmyk": "as Pillow converts",
    "gray16": "round(v / 257)",
    "icc": "ignored",
    "orientation": "EXIF applied",
}

# What Pillow's resampler does is known by its pixels, not by its version: 13.0.0 changed those of tall images.
_RESAMPLERS: Final = {"19de117e6bde": "pillow-13"}


def describe(config: ImageConfig) -> dict[str, Any]:
    """The canonical description of pixels, for the fingerprint; of JSON types, equal for equal pixels.

    The versions of the WebP and AVIF libraries inside Pillow are not part of it.
    """
    return {
        **config.model_dump(mode="json"),
        "formats": sorted(form.value for form in Format),
        "policies": dict(POLICIES),
        "resampler": resampler(),
        "jpeg": "libjpeg-turbo"
        if features.check_feature("libjpeg_turbo")
        else f"libjpeg-{features.version_codec('jpg')}",
    }


@cache
def resampler() -> str:
    """The generation of the installed Pillow's resampler, by what it makes of a small tall and a small wide image."""
    digest = hashlib.sha256()
    for width, height in ((24, 97), (97, 24)):
        values = np.arange(width * height * 3, dtype=np.uint32) ** 2 % 251
        image = Image.fromarray(values.astype(np.uint8).reshape(height, width, 3))
        for method in (
            Image.Resampling.BILINEAR,
            Image.Resampling.BICUBIC,
            Image.Resampling.LANCZOS,
            Image.Resampling.BOX,
        ):
            digest.update(image.resize((16, 64) if height > width else (64, 16), method).tobytes())
    found = digest.hexdigest()[:12]
    return _RESAMPLERS.get(found, f"pillow-{PIL.__version__}-{found}")
