"""What the user may choose about pixels."""

from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.images.catalogue import CATALOGUE, DecodeMode, Interpolation, RecipeFacts, RecipeName

# Pillow warns above this many pixels and refuses above twice as many. Staying at or below it keeps its guard and ours
# in agreement without touching its process-wide setting.
PILLOW_MAX_PIXELS = 89_478_485
TENSOR_INTERPOLATIONS = ("bilinear", "bicubic")  # that torch can antialias
MAX_VIEWS = 256  # of a sample: `view` is a uint8
_CROPS: Final = 10  # 4M's release
_MIN_CROP_SCALE: Final = 0.8  # likewise


class ImageConfig(BaseModel):
    """How the bytes of a sample become the square uint8 pixels that the model sees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: RecipeName = Field(
        "center-crop",
        description="center-crop: shorter side to `size`, then the middle square (torchvision Resize + CenterCrop); "
        "resize-exact: to `size` x `size`, aspect ignored; pad: longer side to `size`, centred on white; the others "
        "are named after the training code that they reproduce, see docs/recipes.md",
    )
    size: int = Field(256, ge=1, le=8192, description="side of the square output (pixels)")
    interpolation: Interpolation | None = Field(
        None, description="resampling filter, antialiased; null is the recipe's own, else bicubic"
    )
    decode: DecodeMode = Field(
        "exact",
        description="exact: the pixels of Pillow, bit for bit; tensor: resampled by torch, as torchvision does with "
        "tensors, a few levels away, nearly twice as fast; fast: JPEGs also decoded at a lower scale, further away",
    )
    crops: int | None = Field(
        None, ge=1, le=MAX_VIEWS, description=f"views per sample of recipe 4m, the first one central; null is {_CROPS}"
    )
    min_crop_scale: float | None = Field(
        None,
        gt=0,
        le=1,
        description=f"smallest area of a random crop of recipe 4m (fraction); null is {_MIN_CROP_SCALE}",
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

    @property
    def facts(self) -> RecipeFacts:
        """What the recipe fixes."""
        return CATALOGUE[self.recipe]

    @property
    def filter(self) -> Interpolation:
        """The resampling filter, resolved."""
        return self.interpolation or self.facts.interpolation or "bicubic"

    @property
    def views(self) -> int:
        """Views per sample."""
        return self.facts.views or self.crops or _CROPS

    @property
    def crop_scale(self) -> float:
        """Smallest area of a random crop (fraction), resolved."""
        return self.min_crop_scale or _MIN_CROP_SCALE

    @model_validator(mode="after")
    def _check_recipe(self) -> Self:
        fixed = self.facts.interpolation
        if fixed and self.interpolation not in (None, fixed):
            raise ValueError(f"image.interpolation must be {fixed} for recipe {self.recipe}, got {self.interpolation}")
        if self.decode not in self.facts.decode:
            modes = " or ".join(sorted(self.facts.decode))
            raise ValueError(f"image.decode must be {modes} for recipe {self.recipe}, got {self.decode}")
        if self.decode != "exact" and self.filter not in TENSOR_INTERPOLATIONS:
            raise ValueError(
                f"image.interpolation must be {' or '.join(TENSOR_INTERPOLATIONS)} with image.decode: {self.decode}, "
                f"got {self.filter}"
            )
        for name in ("crops", "min_crop_scale"):
            if self.recipe != "4m" and getattr(self, name) is not None:
                raise ValueError(f"image.{name} must be null for recipe {self.recipe}, got {getattr(self, name)}")
        return self
