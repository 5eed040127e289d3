"""One image from bytes to views; bad bytes come back as a value, never as an exception."""

from dataclasses import dataclass

from pipeline.errors import Filtered, Reject, Stage
from pipeline.images.config import ImageConfig
from pipeline.images.decode import SizeRule, decode
from pipeline.images.reasons import BadImage, Reason, Unwanted, reject
from pipeline.images.recipes import RECIPES
from pipeline.images.views import Draw, View


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What became of one image.

    Attributes:
        height: of the source after EXIF rotation (pixels).
        width: likewise.
        views: at least one, in the order of their indices.
    """

    height: int
    width: int
    views: tuple[View, ...]


def prepare(data: bytes, config: ImageConfig, draw: Draw | None = None) -> Prepared | Reject:
    """Decode one image and apply the recipe.

    Thread-safe; the GIL is released while it decodes and resizes.

    Args:
        data: the file of one image; its format is found by its content.
        config: recipe and limits.
        draw: chance, for recipes that cut by lot.

    Returns:
        The views, or a reject of stage `decode` or `preprocess` with a reason of `Reason`.
    """
    outcome = prepare_wanted(data, config, draw, lambda *_: None)
    assert not isinstance(outcome, Filtered)
    return outcome


def prepare_wanted(
    data: bytes, config: ImageConfig, draw: Draw | None, size_rule: SizeRule
) -> Prepared | Reject | Filtered:
    """As `prepare`, but an image of a size that the user does not want is left out before its pixels are decoded.

    Args:
        data, config, draw: as of `prepare`.
        size_rule: the rule that a width and height break (pixels); asked for them as they are in the file, not turned.
    """
    stage = Stage.DECODE
    try:
        image = decode(data, config, size_rule)
        stage = Stage.PREPROCESS
        return Prepared(image.height, image.width, RECIPES[config.recipe](image, config, draw or Draw()))
    except BadImage as bad:
        return bad.reject
    except Unwanted as unwanted:
        return unwanted.filtered
    except Exception as error:  # noqa: BLE001 one sample must not end a shard; the account names the exception
        return reject(stage, Reason.INTERNAL, f"{type(error).__name__}: {error}")
