"""Pictures drawn and encoded on the spot: a fresh clone needs no files."""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image


def _draw(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Gradients and noise, uint8 [height, width, channels], or [height, width] for one channel."""
    rows, columns = np.mgrid[0:height, 0:width]
    slopes = np.arange(1, channels + 1)
    ramps = 190 * (rows[..., None] * slopes + columns[..., None] * 2) / (2 * width + height * channels)
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, channels))
    pixels = (ramps + noise).astype(np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def _encode(image: Image.Image | np.ndarray, form: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def draw() -> Callable[..., np.ndarray]:
    """`draw(height, width, channels=3, seed=0)`: see `_draw`."""
    return _draw


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """`encode(image or array, format, **options of Pillow's save)`: the file's bytes."""
    return _encode
