"""What the user may choose about pixels."""

import math
import re
from functools import lru_cache
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
EMU3_MULTIPLE = 8  # pixels; Emu3's tokenizer has 8 x 8 of them for a token
EMU3_SIDES = (512, 1024)  # of squares with the fewest and the most pixels that it takes
_PATCH: Final = 32  # pixels, of Lumina-mGPT
_MAX_ASPECT: Final = 4  # likewise
_SHAPE: Final = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")


class ImageConfig(BaseModel):
    """How the bytes of a sample become the uint8 pixels that the model sees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: RecipeName = Field(
        "center-crop",
        description="center-crop: shorter side to `size`, then the middle square (torchvision Resize + CenterCrop); "
        "resize-exact: to `size` x `size`, aspect ignored; pad: longer side to `size`, centred on white; the others "
        "are named after the training code that they reproduce, see docs/recipes.md",
    )
    size: int = Field(
        256, ge=1, le=8192, description="side of the square output, or of a square of the same area (pixels)"
    )
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
    buckets: tuple[str, ...] = Field(
        (), description="shapes of recipe buckets, HEIGHTxWIDTH (pixels); none: those of a budget of patches"
    )
    patch: int | None = Field(
        None,
        ge=1,
        description=f"side of the patches of recipe buckets, as many as in `size` x `size` (pixels); null is {_PATCH}",
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

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the views: one shape, those of recipe buckets, or none where an image decides."""
        if self.recipe == "buckets":
            return _listed(self.buckets) or _within_budget(self.size, self.patch or _PATCH)
        return () if self.facts.varies else ((self.size, self.size),)

    @property
    def multiple(self) -> int:
        """What both sides of every view are multiples of (pixels)."""
        return math.gcd(*(side for shape in self.shapes for side in shape)) or EMU3_MULTIPLE

    @property
    def view_pixels(self) -> int:
        """Pixels of the largest view, roughly where an image decides."""
        return max((height * width for height, width in self.shapes), default=self.size**2)

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        for text in self.buckets:
            if not _SHAPE.fullmatch(text):
                raise ValueError(f"image.buckets must be like 256x384 (height x width, below 10,000), got {text!r}")
        if len(set(self.buckets)) < len(self.buckets):
            raise ValueError(f"image.buckets must not name a shape twice, got {', '.join(self.buckets)}")
        if self.recipe == "buckets" and self.buckets and self.patch:
            raise ValueError(f"image.patch must be null with image.buckets, got {self.patch}")
        if self.recipe == "buckets" and not self.shapes:
            raise ValueError(f"image.size must be at least image.patch ({self.patch or _PATCH}), got {self.size}")
        if self.recipe == "emu3" and not EMU3_SIDES[0] <= self.size <= EMU3_SIDES[1]:
            raise ValueError(f"image.size must be {EMU3_SIDES[0]} to {EMU3_SIDES[1]} for recipe emu3, got {self.size}")
        return self

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
        for name, recipe in (("crops", "4m"), ("min_crop_scale", "4m"), ("buckets", "buckets"), ("patch", "buckets")):
            if self.recipe != recipe and getattr(self, name):
                raise ValueError(f"image.{name} must be null for recipe {self.recipe}, got {getattr(self, name)}")
        return self


@lru_cache  # asked for every image
def _listed(buckets: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """The shapes that are written out."""
    sides = (text.partition("x") for text in buckets)
    return tuple((int(height), int(width)) for height, _, width in sides)


@lru_cache
def _within_budget(size: int, patch: int) -> tuple[tuple[int, int], ...]:
    """The largest shapes of whole patches with at most those of `size` x `size`, from wide to tall."""
    budget = (size // patch) ** 2
    shapes, wide, tall = [], budget, 1
    while wide > 0:
        if max(wide, tall) <= _MAX_ASPECT * min(wide, tall):
            shapes.append((tall * patch, wide * patch))
        if (tall + 1) * wide <= budget:
            tall += 1
        else:
            wide -= 1
    return tuple(shapes)
