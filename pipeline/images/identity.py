"""The image part of a run's fingerprint: all that decides which pixels come out, and which samples are rejected."""

import hashlib
from functools import cache
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import PIL
from PIL import Image, features

from pipeline.images.catalogue import DecodeMode
from pipeline.images.config import TENSOR_INTERPOLATIONS, ImageConfig
from pipeline.images.pictures import picture_of
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
_RESAMPLERS: Final = {"19de117e6bde": "pillow-13", "a4b2cf85a50b": "torch-2"}
_TRIALS: Final = ((24, 97), (97, 24))  # width and height of a tall and a wide image


def describe(config: ImageConfig, seed: int = 0) -> dict[str, Any]:
    """The canonical description of pixels, for the fingerprint; of JSON types, equal for equal pixels.

    What a recipe does not use is not in it: neither the seed nor the parameters of others.

    What resamples is for the actors to say (`resampler`). The versions of the WebP and AVIF libraries inside Pillow are
    not part of it.
    """
    own: dict[str, Any] = {}
    if config.recipe == "4m":
        own = {"crops": config.views, "min_crop_scale": config.crop_scale}
    elif config.recipe == "buckets":
        own = {"buckets": [list(shape) for shape in config.shapes]}
    lot = {"seed": seed} if config.facts.random else {}
    return {
        **config.model_dump(mode="json", exclude={"crops", "min_crop_scale", "buckets", "patch"}),
        "interpolation": config.filter,
        **own,
        **lot,
        "formats": sorted(form.value for form in Format),
        "policies": dict(POLICIES),
        "jpeg": "libjpeg-turbo"
        if features.check_feature("libjpeg_turbo")
        else f"libjpeg-{features.version_codec('jpg')}",
    }


@cache
def resampler(decode: DecodeMode) -> str:
    """The generation of what resamples images here, by what it makes of a small tall and a small wide image."""
    exact = decode == "exact"
    digest = hashlib.sha256()
    for width, height in _TRIALS:
        values = np.arange(width * height * 3, dtype=np.uint32) ** 2 % 251
        image = Image.fromarray(values.astype(np.uint8).reshape(height, width, 3))
        picture = picture_of(image, decode)
        for interpolation in ("bilinear", "bicubic", "lanczos", "box") if exact else TENSOR_INTERPOLATIONS:
            digest.update(
                picture.resized(*((64, 16) if height > width else (16, 64)), interpolation).pixels().tobytes()
            )
    found = digest.hexdigest()[:12]
    library = f"pillow-{PIL.__version__}" if exact else f"torch-{version('torch').partition('+')[0]}"
    return _RESAMPLERS.get(found, f"{library}-{found}")
