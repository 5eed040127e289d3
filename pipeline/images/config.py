"""What the user may choose about pixels."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Pillow warns above this many pixels and refuses above twice as many. Staying at or below it keeps its guard and ours
# in agreement without touching its process-wide setting.
PILLOW_MAX_PIXELS = 89_478_485
DecodeMode = Literal["exact", "tensor", "fast"]
TENSOR_INTERPOLATIONS = ("bilinear", "bicubic")  # that torch can antialias


class ImageConfig(BaseModel):
    """How the bytes of a sample become the square uint8 pixels that the model sees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Literal["center-crop", "resize-exact", "pad"] = Field(
        "center-crop",
        description="center-crop: shorter side to `size`, then the middle square (torchvision Resize + CenterCrop); "
        "resize-exact: to `size` x `size`, aspect ignored; pad: longer side to `size`, centred on white",
    )
    size: int = Field(256, ge=1, le=8192, description="side of the square output (pixels)")
    interpolation: Literal["bilinear", "bicubic", "lanczos", "box"] = Field(
        "bicubic", description="resampling filter, antialiased as in Pillow"
    )
    decode: DecodeMode = Field(
        "exact",
        description="exact: the pixels of Pillow, bit for bit; tensor: resampled by torch, as torchvision does with "
        "tensors, a few levels away, nearly twice as fast; fast: JPEGs also decoded at a lower scale, further away",
    )
    max_pixels: int = Field(
        PILLOW_MAX_PIXELS,
        ge=1,
        le=PILLOW_MAX_PIXELS,
        description="largest source image, and largest intermediate of a recipe (pixels); larger ones are rejected",
    )
    max_bytes: int = Field(
        300_000_000,
        ge=1,
        description="largest file of one image (bytes); the default holds the most pixels even uncompressed",
    )
    max_scan_pixels: int = Field(
        1_000_000_000,
        ge=1,
        description="largest pixels x scans of a JPEG (pixels); a progressive file of many scans is a CPU bomb",
    )
    min_side: int = Field(1, ge=1, description="smallest height and width of the source (pixels)")

    @model_validator(mode="after")
    def _check_resampler(self) -> Self:
        if self.decode != "exact" and self.interpolation not in TENSOR_INTERPOLATIONS:
            raise ValueError(
                f"image.interpolation must be {' or '.join(TENSOR_INTERPOLATIONS)} with image.decode: {self.decode}, "
                f"got {self.interpolation}"
            )
        return self
