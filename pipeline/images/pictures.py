"""An upright RGB image as the recipes see it: they say where to cut and to what size, a picture knows how to resample.

`PillowPicture` is mode `exact`, the other modes resample with torch (`tensors`).
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.images.catalogue import DecodeMode

Pixels = npt.NDArray[np.uint8]


class Picture(Protocol):
    """An RGB image that recipes cut and resample."""

    @property
    def height(self) -> int:
        """Rows (pixels)."""
        ...

    @property
    def width(self) -> int:
        """Columns (pixels)."""
        ...

    def resized(self, height: int, width: int, interpolation: str) -> Self:
        """The whole picture resampled, antialiased, by `bilinear`, `bicubic`, `lanczos` or `box`."""
        ...

    def cropped(self, top: int, left: int, height: int, width: int) -> Self:
        """A part of the picture, which must lie inside."""
        ...

    def pixels(self) -> Pixels:
        """uint8 [height, width, 3], C-contiguous, owned by the caller."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PillowPicture:
    """A picture resampled by Pillow: the reference."""

    image: Image.Image

    @property
    def height(self) -> int:
        """Rows (pixels)."""
        return self.image.height

    @property
    def width(self) -> int:
        """Columns (pixels)."""
        return self.image.width

    def resized(self, height: int, width: int, interpolation: str) -> "PillowPicture":
        """See `Picture`."""
        return PillowPicture(self.image.resize((width, height), Image.Resampling[interpolation.upper()]))

    def cropped(self, top: int, left: int, height: int, width: int) -> "PillowPicture":
        """See `Picture`."""
        return PillowPicture(self.image.crop((left, top, left + width, top + height)))

    def pixels(self) -> Pixels:
        """See `Picture`."""
        return np.array(self.image, dtype=np.uint8, order="C")


def picture_of(image: Image.Image, decode: DecodeMode, size: tuple[int, int] | None = None) -> Picture:
    """A picture as the mode resamples it.

    Args:
        image: mode RGB, upright.
        decode: the mode.
        size: width and height of the source, if the image was decoded at a lower scale.
    """
    if decode == "exact":
        return PillowPicture(image)
    from pipeline.images.tensors import tensor_picture  # torch: only in the modes that need it

    width, height = size or image.size
    return tensor_picture(image, height, width)
