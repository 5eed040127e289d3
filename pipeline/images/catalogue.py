"""What is known of each recipe before an image is seen. The recipes themselves are functions in `recipes`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from pipeline.encoding import ValueRange

RecipeName = Literal[
    "center-crop",
    "resize-exact",
    "pad",
    "llamagen-tencrop-1.1",
    "llamagen-tencrop-1.05",
    "llamagen-center-flip",
    "4m",
    "open-muse",
    "amused",
    "maskgit-vqgan",
    "emu3",
    "buckets",
]
Interpolation = Literal["bilinear", "bicubic", "lanczos", "box"]
DecodeMode = Literal["exact", "tensor", "fast"]


@dataclass(frozen=True, slots=True)
class RecipeFacts:
    """What a recipe fixes.

    Attributes:
        interpolation: of the code that it reproduces; None leaves the choice.
        value_range: what that code gives its model; None if it belongs to no code, or to several that differ.
        views: of each sample; None if `image.crops` says.
        random: cuts by lot.
        varies: its views have several shapes.
        decode: the modes that it works in. Halving by `box` is Pillow's alone, and what was decoded at a lower scale
            can only be resampled whole.
    """

    interpolation: Interpolation | None = None
    value_range: ValueRange | None = None
    views: int | None = 1
    random: bool = False
    varies: bool = False
    decode: frozenset[DecodeMode] = frozenset(("exact", "tensor", "fast"))


_EXACT: Final[frozenset[DecodeMode]] = frozenset(("exact",))
_UNSCALED: Final[frozenset[DecodeMode]] = frozenset(("exact", "tensor"))

CATALOGUE: Final[Mapping[RecipeName, RecipeFacts]] = MappingProxyType(
    {
        "center-crop": RecipeFacts(),
        "resize-exact": RecipeFacts(),
        "pad": RecipeFacts(),
        "llamagen-tencrop-1.1": RecipeFacts("bicubic", None, 10, decode=_EXACT),
        "llamagen-tencrop-1.05": RecipeFacts("bicubic", None, 10, decode=_EXACT),
        "llamagen-center-flip": RecipeFacts("bicubic", None, 2, decode=_EXACT),
        "4m": RecipeFacts("bicubic", ValueRange.SIGNED, None, random=True, decode=_UNSCALED),
        "open-muse": RecipeFacts("bilinear", ValueRange.UNIT),
        "amused": RecipeFacts("bilinear", ValueRange.UNIT, random=True),
        "maskgit-vqgan": RecipeFacts("bilinear", ValueRange.UNIT),
        "emu3": RecipeFacts("bicubic", ValueRange.SIGNED, varies=True, decode=_UNSCALED),
        "buckets": RecipeFacts(varies=True, decode=_UNSCALED),
    }
)
